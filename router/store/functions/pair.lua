-- pair: change what two users are to each other (contacts, requests, blocks), and so which of them may write to the other.
-- KEYS  conv dirty
-- ARGV  conv user other action argument number
--       action, all of them by `user`:
--         ask     ask the other to be a contact; argument: the message; number: 1 if a request may reach the other
--         accept  accept the other's request
--         remove  end the contact, cancel the own request, or decline the other's
--         block, unblock
--         only    accept messages only from contacts (argument 1) or from every user (0), as of setting `number`
--         ended   the user's account has ended
--         ahead   copies have `number`, a higher one than the record, so a failover took the record back
--         unseen  there was no room for the user's request in the other's list
--         look    no change; but requests that are over are removed, and so is a record that says nothing any more
-- Returns {record ('' if there is none), replication id, now (ms), role of the user, role of the other};
--         NOTFOUND: there is no request to accept, or no such user any more; CONFLICT: the user blocks the other, or for
--         `ahead` the record has `number`, or a higher one
--
-- Keeps true:
-- - The record may exist before the conversation does; `create` reads it. If the conversation exists, both roles follow
--   from the record at every call. So if a user has written since (`w:`), the other may answer.
-- - n only rises, over failovers too. The users' slots have copies with the number of their change, and the higher number
--   wins. A change that makes a copy out of date marks `=conv`, until `mark_pair_copied` records that it was copied. If
--   copies have a higher number than the record, the next change (`ahead`) is above theirs.
-- - A user that a release without records has blocked was a party of an account that has ended.

local LASTS_DAYS = 30
local QUIET_MS = 86400000           -- a day
local FIELDS = {'contact_n', 'block_n', 'blocked', 'only', 'only_n', 'wrote', 'ended', 'asked', 'ends', 'message', 'shown',
  'quiet'}

local function text_of(value)
  return type(value) == 'number' and string.format('%.0f', value) or tostring(value)
end

-- The content of the record without its number, as text. Packed records cannot be compared, because maps have no order.
local function said(record, user, other)
  local words = {text_of(record.contact)}
  for _, who in ipairs({user, other}) do
    for _, field in ipairs(FIELDS) do words[#words + 1] = text_of(record.of[who][field]) end
  end
  return table.concat(words, '\0')
end

-- The entry that `user` has for the other at `now`, as text; '' if there is none.
local function entry(record, user, other, now)
  local mine, theirs = record.of[user], record.of[other]
  if record.contact then return 'c' .. text_of(record.contact) end
  local kind, asks = 'o', mine
  if not mine.asked or mine.ends <= now then kind, asks = 'i', theirs end
  if not asks.asked or asks.ends <= now or kind == 'i' and not asks.shown then return '' end
  return kind .. text_of(asks.asked) .. ' ' .. text_of(asks.ends) .. ' ' .. (asks.message or '')
end

local function forget_request(side)
  side.asked, side.ends, side.message, side.shown = nil, nil, nil, nil
end

local function become_contacts(record, mine, theirs, now)
  forget_request(mine)
  forget_request(theirs)
  mine.quiet, theirs.quiet = nil, nil
  record.contact = now
end

local function decline(theirs, now)
  if theirs.shown then theirs.shown, theirs.quiet = nil, now + QUIET_MS end
end

-- Each action returns nil, or the error if it is refused.
local actions = {}

function actions.ask(record, mine, theirs, a, now)
  if mine.blocked then return fail('CONFLICT', 'you block this user: unblock them first') end
  if mine.ended or theirs.ended then return fail('NOTFOUND', 'no such user') end
  if record.contact then return end
  if theirs.asked then return become_contacts(record, mine, theirs, now) end
  local reaches = a[6] == '1' and not theirs.blocked and not mine.quiet
  if not mine.asked then
    mine.asked, mine.ends, mine.message = now, now + LASTS_DAYS * QUIET_MS, a[5] ~= '' and a[5] or nil
  elseif mine.shown then
    return
  end
  if reaches then mine.shown = true else mine.quiet = mine.quiet or now + QUIET_MS end
end

function actions.accept(record, mine, theirs, _, now)
  if record.contact then return end
  if not theirs.shown then return fail('NOTFOUND', 'no such request') end
  become_contacts(record, mine, theirs, now)
end

function actions.remove(record, mine, theirs, _, now)
  if record.contact then
    record.contact = nil
  elseif mine.asked then
    forget_request(mine)
  else
    decline(theirs, now)
  end
end

function actions.block(record, mine, theirs, _, now)
  mine.blocked = mine.blocked or now
  record.contact = nil
  forget_request(mine)
  decline(theirs, now)
end

function actions.unblock(_, mine) mine.blocked = nil end

function actions.only(_, mine, _, a)
  local number = tonumber(a[6])
  if number > (mine.only_n or 0) then mine.only, mine.only_n = a[5] == '1' or nil, number end
end

function actions.ended(record, mine, theirs)
  mine.ended, record.contact = true, nil
  forget_request(mine)
  forget_request(theirs)
end

function actions.unseen(_, mine, _, _, now) decline(mine, now) end

function actions.look() end

function actions.ahead(record, _, _, a)
  if tonumber(a[6]) <= record.n then return fail('CONFLICT') end
end

local function drop_old(side, now)
  if side.quiet and side.quiet <= now then side.quiet = nil end
  if side.asked and side.ends <= now then forget_request(side) end
end

local function pair(k, a)
  local user, other, action = a[2], a[3], a[4]
  local h = redis.call('HMGET', k[1], 'pair', 'm', 'u:' .. user, 'u:' .. other, 'w:' .. user, 'w:' .. other)
  local us, record = now_us(), pair_of(h[1])
  local now = math.floor(us / 1000)
  if not record then
    record = {n = 0, of = {[user] = {contact_n = 0, block_n = 0}, [other] = {contact_n = 0, block_n = 0}}}
    record.of[other].ended = h[3] and string.sub(h[3], 1, 1) == 'b' or nil
    record.of[user].ended = h[4] and string.sub(h[4], 1, 1) == 'b' or nil
  end
  local mine, theirs = record.of[user], record.of[other]
  local was, blocked = said(record, user, other), mine.blocked
  local had, others_had = entry(record, user, other, 0), entry(record, other, user, 0)
  drop_old(mine, now)
  drop_old(theirs, now)
  local refusal = actions[action](record, mine, theirs, a, now)
  if refusal then return refusal end
  mine.wrote, theirs.wrote = mine.wrote or h[5] and true, theirs.wrote or h[6] and true

  local ahead = action == 'ahead'
  local n, outdated = math.max(us, record.n + 1), ahead
  if ahead then n = math.max(n, tonumber(a[6]) + 1) end
  if entry(record, user, other, now) ~= had then mine.contact_n, outdated = n, true end
  if entry(record, other, user, now) ~= others_had then theirs.contact_n, outdated = n, true end
  if mine.blocked ~= blocked then mine.block_n, outdated = n, true end
  if outdated then
    redis.call('ZADD', k[2], 'NX', '+inf', '!')
    redis.call('ZADD', k[2], now + COALESCE_MS, '=' .. a[1])
  end
  local packed = h[1] or ''
  local kept = h[1] and (not is_old(record, us) or redis.call('ZSCORE', k[2], '=' .. a[1]))
  if not outdated and is_blank(record) and not kept then
    if h[1] then redis.call('HDEL', k[1], 'pair') end
    packed = ''
  elseif not h[1] or ahead or said(record, user, other) ~= was then
    record.n = n
    packed = cmsgpack.pack(record)
    redis.call('HSET', k[1], 'pair', packed)
  end
  local role = pair_role(record, user, other)
  if h[2] and h[3] and string.sub(h[3], 1, 1) ~= role then
    redis.call('HSET', k[1], 'u:' .. user, role .. string.sub(h[3], 2))
  end
  local others_role = pair_role(record, other, user)
  if h[2] and h[4] and string.sub(h[4], 1, 1) ~= others_role then
    redis.call('HSET', k[1], 'u:' .. other, others_role .. string.sub(h[4], 2))
  end
  return {packed, replid(us), string.format('%.0f', now), role, others_role}
end

register('pair', pair, {'allow-oom'})
