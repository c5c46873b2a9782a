-- append: one event into a conversation, once for its (user, device, n).
-- KEYS  conv log dirty
-- ARGV  conv channel cap user user/device action facts rest [files | moderator] [party …]
--       facts, packed as FACTS: n done seen target fingerprint flags first; n 0: no dedup row, no rate;
--       flags: 1 limited, else no rate; 2 users' rows are written in format 2;
--       target: of a message the seq to which it replies, or 0
--       party, of a direct one on a single server: user convs recent channel other, the author last
--       action: message edit delete react files moderate; a message that is not limited is a backend's: its author has not read it
--       files, only with the action `files` (a message with files): the time (s) at which they were pinned for this
--       conversation (file_pin.lua) and their hashes; '' if the author may not use one of them; it is in the place of
--       `moderator`, only with the action `moderate` (a delete as the server): the user who decided it
-- Returns ANSWER packed; NOTFOUND READONLY_ MUTED <µs> BLOCKED CONFLICT CONTENT ANSWERED <next> OLD <next> SLOW <µs>
--   RATE <µs> NOFILE LATER
--
-- Keeps true:
-- - Only what `check_append` (prelude_sending.lua) allows is written; an accepted n gets its first answer again.
-- - No data is changed unless the event is in the log.
-- - A message and the references of its files are added in one step, and removed in one.
--
-- `deleted` has the seqs of the messages that were deleted last, as 8 bytes each. The notes and rows are described in
-- prelude_sending.lua.

local DELETIONS = 256              -- the last of a conversation, which do not count as unread
local DUPLICATE, UNCHANGED = 1, 2  -- `duplicate` of an ANSWER if no event was written
local LAGGING_MAX = 64             -- conversations of a user whose rows lag (prelude_user_lagging.lua)
local ACTIVE_MS = 500              -- between two messages of a conversation whose rows may lag: to begin and end that costs
                                   -- as much as is saved with three messages, and it ends after DELIVERED_MS
local DEVICES = 64                 -- rows of a user in one conversation; clients choose device names

local function again(log, seq, id, how)
  local entry = redis.call('XRANGE', log, seq, seq)[1]
  return struct.pack(ANSWER, seq, 0, 0, entry and at_of(entry[2][2]) or 0, how, id)
end

-- Apply an edit, delete or reaction, whose event is in the log. `event`: the target's bytes. `acts`: of the delete of
-- another user's message, the conversation's acts with this one.
local function apply(k, action, target, seq, note, event, acts)
  if action == 'react' then
    if note then redis.call('HSET', k[1], 'r:' .. target, note(seq)) end
    if note == false then redis.call('HDEL', k[1], 'r:' .. target) end
    return
  end
  local edited = 'e:' .. target
  local edits = redis.call('HGET', k[1], edited) or ''
  if action == 'edit' then
    redis.call('HSET', k[1], edited, edits .. struct.pack('>I8', seq))
  elseif action == 'delete' then
    redis.call('XDEL', k[2], target)
    for p = 1, #edits, 8 do redis.call('XDEL', k[2], (struct.unpack('>I8', edits, p))) end
    redis.call('HDEL', k[1], edited, 'r:' .. target)
    if has_files(event) then release_files(k[1], {event}) end
    local gone = (redis.call('HGET', k[1], 'deleted') or '') .. struct.pack('>I8', tonumber(target))
    redis.call('HSET', k[1], 'deleted', string.sub(gone, -8 * DELETIONS))
    if acts then redis.call('HSET', k[1], 'acts', acts) end
  end
end

-- Add a device to the user's devices in this conversation, with its first event. If there are too many, the row of the
-- device that has been quiet longest is deleted.
local function admit(key, user, device)
  local known = redis.call('HGET', key, 'w:' .. user) or ''
  local rows = {}
  for name in string.gmatch(known, '%S+') do rows[#rows + 1] = 'd:' .. name end
  if #rows >= DEVICES then
    local quiet, least = 1, math.huge
    for i, d in ipairs(redis.call('HMGET', key, unpack(rows))) do
      local seq = d and #d >= ACCEPTED_AT and struct.unpack('>I8', d, #d - 15) or 0
      if seq < least then quiet, least = i, seq end
    end
    redis.call('HDEL', key, table.remove(rows, quiet))
    local names = {}
    for i, row in ipairs(rows) do names[i] = string.sub(row, 3) end
    known = table.concat(names, ' ')
  end
  redis.call('HSET', key, 'w:' .. user, known == '' and device or known .. ' ' .. device)
end

-- Append a message whose conversation's rows lag: most messages of a direct conversation that is active. It is what
-- `append` does, without all that such a message does not need. Nil, before anything is written, if the message needs
-- more, or is not accepted: then `append` goes its usual way.
local function append_lagging(k, a, h, us, n, answered, fingerprint, first)
  local d = h[3]
  if not h[1] or not d or h[2] ~= 'm 0 0' or h[5] or n <= greatest(d) then return nil end
  local tat, done = struct.unpack('>I8I8', d)
  local last, count, cost, burst, wrote = struct.unpack(META, h[1])
  if answered > done then done = answered end
  if n <= done or tonumber(h[4] or 0) >= last or in_cluster() or wrote ~= replid(us) then return nil end
  if tat > us + burst then tat = us end
  tat = math.max(tat, us) + cost
  if tat - us > burst then return nil end
  local at, seq, total = math.floor(us / 1000), last + 1, count + 1
  local event = struct.pack(SLOTS, first, '\163seq\207', seq, '\164prev\207', last, '\165count\207', total,
    '\162at\207', at) .. a[8]
  if type(redis.pcall('XADD', k[2], seq, 'e', event, 'f', a[4])) ~= 'string' then return nil end
  redis.call('HSET', k[1], 'm', struct.pack(META, seq, total, cost, burst, wrote, at),
    'd:' .. a[5], accepted(d, #d + 1, tat, done, n, seq, fingerprint), 'o:' .. a[4], struct.pack('>I8I8', seq, total))
  if seq % CAP_EVERY == 0 then cut_log(k[1], k[2], tonumber(a[3])) end
  redis.call('SPUBLISH', a[12], event)
  redis.call('SPUBLISH', a[17], event)
  return struct.pack(ANSWER, seq, last, total, at, 0, wrote)
end

-- Leave the rows of a direct conversation to be raised later, from its next message on.
local function let_lag(key, a)
  local lagging, others = lagging_of(a[10]), lagging_of(a[15])
  if in_cluster() then return end
  for _, one in ipairs({lagging, others}) do
    local size = redis.pcall('HLEN', one)
    if type(size) ~= 'number' or size >= LAGGING_MAX then return end
  end
  redis.call('HSET', lagging, a[1], cmsgpack.pack({key, a[9], a[18], a[13]}))
  redis.call('HSET', others, a[1], cmsgpack.pack({key, a[14], a[13], a[18]}))
  redis.call('HSET', key, 'lagging', 1, 'rows', cmsgpack.pack({{a[10], a[11], a[18]}, {a[15], a[16], a[13]}}))
end

local function append(k, a)
  local user = a[4]
  local action, files, moderator, limited, format, n, answered, seen, target, fingerprint, first = append_facts(a)
  local h, us = read_for_append(k, a), now_us()
  -- A user's message without files, in a conversation of two users.
  local plain = action == 'message' and limited and format == 2 and n > 0 and target == 0 and not files and #a == 18
  if plain and h[6] then
    local answer = append_lagging(k, a, h, us, n, answered, fingerprint, first)
    if answer then return answer end
  end
  local refusal, known, p, tat, done, said, note, aimed, acts, held, slow, counted, count, cost, burst, wrote,
    last_at = check_append(k, a, h, us, action, files, moderator, limited, n, answered, target, fingerprint, first)
  if refusal then return refusal end
  if known then return again(k[2], known, replid(us), DUPLICATE) end

  local d = h[3] or NO_ACCEPTED
  if said then
    if n > 0 then
      if not h[3] then admit(k[1], user, a[5]) end
      redis.call('HSET', k[1], 'd:' .. a[5], accepted(d, p, tat, done, n, said, fingerprint))
    end
    return again(k[2], said, replid(us), UNCHANGED)
  end

  local w, err = append_event(k[2], k[3], counted, count, wrote, last_at, us, seen, first, a[8],
    action == 'message' and user or nil)
  if not w then return err end
  if slow then redis.call('HSET', k[1], 's:' .. user, us) end
  if action ~= 'message' then apply(k, action, target, w.seq, note, aimed, acts) end
  local routed = tonumber(h[4] or 0)
  if routed >= counted then mark_dirty(k[3], a[1], w.at + (a[9] and DELIVERED_MS or COALESCE_MS)) end
  if h[6] and not a[9] then
    redis.call('HDEL', k[1], 'lagging')  -- its caller delivers it, and a router what was to be raised
  elseif h[6] and not in_cluster() then
    local others, own = unpack(redis.call('HMGET', k[1], 'o:' .. a[18], 'o:' .. a[13]))
    raise_lagging(a[9], a[10], a[11], a[13], a[1], counted, count, others)
    raise_lagging(a[14], a[15], a[16], a[18], a[1], counted, count, own)
  end
  local answer
  if held then
    for i = 2, #held, 2 do held[i] = held[i] .. struct.pack('>I8', w.seq) end
    if n > 0 then
      if not h[3] then admit(k[1], user, a[5]) end
      held[#held + 1], held[#held + 2] = 'd:' .. a[5], accepted(d, p, tat, done, n, w.seq, fingerprint)
    end
    answer = commit_event(k, a[2], a[3], w, cost, burst, unpack(held))
  elseif n == 0 then
    answer = commit_event(k, a[2], a[3], w, cost, burst)
  else
    if not h[3] then admit(k[1], user, a[5]) end
    answer = commit_event(k, a[2], a[3], w, cost, burst, 'd:' .. a[5], accepted(d, p, tat, done, n, w.seq, fingerprint))
  end
  local own, gone = #a - 4, action == 'delete' and tonumber(target) or 0
  if own > 9 then
    deliver_event(a[9], a[10], a[11], a[12], a[13], a[1], w.seq, w.count, w.event, false, gone, us, format)
  end
  if own > 8 and action == 'message' and limited then
    deliver_own_event(a[own], a[own + 1], a[own + 2], a[own + 3], a[own + 4], a[1], w.seq, w.count, w.event, us,
      format)
  elseif own > 8 then
    deliver_event(a[own], a[own + 1], a[own + 2], a[own + 3], a[own + 4], a[1], w.seq, w.count, w.event, false,
      gone, us, format)
  end
  -- From the third message of a burst on, because most bursts of people are shorter.
  if plain and not h[6] and counted - routed >= 2 and w.at - last_at < ACTIVE_MS then let_lag(k[1], a) end
  return answer
end

register('append', append)
