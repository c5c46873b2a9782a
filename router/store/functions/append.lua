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
-- - The resend of an accepted n gets the first answer again, even if its author was removed since: n is looked up before
--   all other checks. With other content the answer is CONTENT; if n is not above `done`, ANSWERED; if it is below the
--   last 32 rows, so that its answer is not known any more, OLD. From `next` on, every n is usable.
-- - No data is changed unless the event is in the log.
-- - A message and the references of its files are added in one step, and removed in one. Files are checked after n: a
--   message that was accepted once is acked again, even if its files were removed since.
--
-- A device's row `d:<user>/<device>`: rate stamp (µs), done, then at most 32 accepted (n, seq, fingerprint) by
-- ascending n. All n <= done are answered, so their rows are deleted: a copy of such a command that was delayed on an old
-- connection is refused, not written again.
-- `deleted` has the seqs of the messages that were deleted last, as 8 bytes each.
-- `e:<seq>` notes the edits of a message, so that its delete takes all its content out of the log.
-- `r:<seq>` notes the last reaction of each user with each emoji to a message: if a reaction repeats it, the ack has the
-- seq of the first event, and no event is written.
-- `f:<hash>` has the seqs of the messages with a file (prelude.lua).

local FACTS = '>I8I8I8I8c8Bc1'
local ROWS_AT = 17
local ROW = 24
local FULL = ROWS_AT - 1 + 32 * ROW
local EDITS = 256                  -- of one message
local DELETIONS = 256              -- the last of a conversation, which do not count as unread
local REACTIONS = 4096             -- notes of one message; reactions without room for a note are written each time
local NOTE = '>c12I8B'             -- user and emoji, the seq of the event, 1 if it removes
local NOTE_SIZE = 21
local DUPLICATE, UNCHANGED = 1, 2  -- `duplicate` of an ANSWER if no event was written
local REFERENCES = 4096            -- messages of a conversation with one and the same file
local DEVICES = 64                 -- rows of a user in one conversation; clients choose device names

-- Find n among the rows: where it belongs; its seq if it is there; whether it is there with other content.
local function seek(d, n, fingerprint)
  local p = #d + 1
  while p > ROWS_AT do
    local rn, seq = struct.unpack('>I8I8', d, p - ROW)
    if n > rn then break end
    if n == rn then return p, seq, string.sub(d, p - 8, p - 1) ~= fingerprint end
    p = p - ROW
  end
  return p
end

-- The n after `done` and all rows.
local function after_all(d, done)
  local last = #d >= ROWS_AT and struct.unpack('>I8', d, #d + 1 - ROW) or 0
  return string.format('%.0f', math.max(last, done) + 1)
end

local function again(log, seq, id, how)
  local entry = redis.call('XRANGE', log, seq, seq)[1]
  return struct.pack(ANSWER, seq, 0, 0, entry and at_of(entry[2][2]) or 0, how, id)
end

-- Read a reaction (an event without its slots): a hash of its user and emoji, and whether it removes (1) or not (0).
local function reaction(user, first, rest)
  local event = cmsgpack.unpack(string.char(string.byte(first) - 4) .. rest)
  return string.sub(redis.sha1hex(user .. ' ' .. tostring(event.emoji)), 1, 12), event.remove and 1 or 0
end

-- Where a note is among the notes.
local function find_note(notes, whose)
  local p = string.find(notes, whose, 1, true)
  while p and p % NOTE_SIZE ~= 1 do p = string.find(notes, whose, p + 1, true) end
  return p
end

-- Compare a reaction with the notes: the seq of the event that it repeats, or nil and the new notes (nil: no room).
local function compare(key, target, user, first, rest)
  local notes = redis.call('HGET', key, 'r:' .. target) or ''
  local whose, removes = reaction(user, first, rest)
  local p = find_note(notes, whose)
  if p then
    local _, seq, was = struct.unpack(NOTE, notes, p)
    if was == removes then return seq end
    notes = string.sub(notes, 1, p - 1) .. string.sub(notes, p + NOTE_SIZE)
  elseif #notes >= REACTIONS * NOTE_SIZE then
    return nil, nil
  elseif removes == 1 and redis.call('HEXISTS', key, 'noted') == 1 then
    return tonumber(target)        -- there is no such reaction, so the ack names the message
  end
  return nil, function(seq) return notes .. struct.pack(NOTE, whose, seq, removes) end
end

-- Whether reactions have notes here. They have none in a deployment of format 1, whose channels begin with the partition:
-- nodes of a release without notes may write beside this one, so a note could be out of date.
local function keeps_notes(a)
  local channel = a[2] ~= '' and a[2] or a[12] or ''
  return string.sub(channel, 1, 1) ~= '{'
end

-- Whether the user of the member row (role, joined) sees this event.
local function sees(key, user, joined, seq)
  if seq >= joined then return true end
  for _, time in ipairs(earlier(redis.call('HGET', key, 'h:' .. user))) do
    if time[1] <= seq and seq <= time[2] then return true end
  end
  return false
end

-- The error if this member may not edit, delete or react to the target; else nil, the target's bytes, and its author.
local function forbidden(k, action, target, user, role, joined)
  local entry = redis.call('XRANGE', k[2], target, target)[1]
  local author, event = entry and entry[2][4], entry and entry[2][2]
  if not author or not sees(k[1], user, joined, tonumber(target)) then return fail('NOTFOUND') end
  local may = author == user or action == 'react' or action == 'delete' and (role == 'o' or role == 'a')
  if not may then return fail('READONLY_', 'only its author may do that') end
  if action == 'edit' and redis.call('HSTRLEN', k[1], 'e:' .. target) >= 8 * EDITS then
    return fail('CONFLICT', 'this message was edited too often')
  end
  return nil, event, author
end

-- The error if the role alone does not allow this. Readers and blocked users may delete their own messages.
local function refused(key, role, action)
  if action == 'delete' then return nil end
  if role == 'b' or role == 'c' then return fail('BLOCKED') end
  if action ~= 'react' then return fail('READONLY_', 'readers may not write here') end
  if redis.call('HGET', key, 'reacting') == 'members' then
    return fail('READONLY_', 'this takes the role member: readers may not react here')
  end
end

-- The references of the files of a message that is about to be written: {field, seqs, …}, or nil and an error.
local function referring(key, files, now)
  if files == '' then return nil, fail('NOFILE') end
  local fields = {}
  for p = 5, #files, HASH do fields[#fields + 1] = 'f:' .. string.sub(files, p, p + HASH - 1) end
  if now - struct.unpack('>I4', files) > PINNED_S then return nil, fail('LATER', 'the files were looked up too long ago') end
  local held = {}
  for i, seqs in ipairs(redis.call('HMGET', key, unpack(fields))) do
    if seqs and #seqs >= 8 * REFERENCES then return nil, fail('CONFLICT', 'this file was sent here too often') end
    held[2 * i - 1], held[2 * i] = fields[i], seqs or ''
  end
  return held
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
      local seq = d and #d >= ROWS_AT and struct.unpack('>I8', d, #d - 15) or 0
      if seq < least then quiet, least = i, seq end
    end
    redis.call('HDEL', key, table.remove(rows, quiet))
    local names = {}
    for i, row in ipairs(rows) do names[i] = string.sub(row, 3) end
    known = table.concat(names, ' ')
  end
  redis.call('HSET', key, 'w:' .. user, known == '' and device or known .. ' ' .. device)
end

-- The row with (n, seq, fingerprint) at p, without the entries that `done` or the bound ends.
local function accepted(d, p, tat, done, n, seq, fingerprint)
  local from = ROWS_AT
  while from < p and struct.unpack('>I8', d, from) <= done do from = from + ROW end
  if #d - from >= FULL - ROWS_AT then from = from + ROW end
  return struct.pack('>I8I8', tat, done) .. string.sub(d, from, p - 1) .. struct.pack('>I8I8c8', n, seq, fingerprint)
    .. string.sub(d, p)
end

local function append(k, a)
  local user, action, files, moderator = a[4], a[6], nil, nil
  if action == 'files' then action, files = 'message', table.remove(a, 9)
  elseif action == 'moderate' then action, moderator = 'delete', table.remove(a, 9) end
  local n, answered, seen, target, fingerprint, flags, first = struct.unpack(FACTS, a[7])
  local limited, format = flags % 2, flags >= 2 and 2 or 1
  local h = redis.call('HMGET', k[1], 'm', 'u:' .. user, 'd:' .. a[5], 'routed', 'rules')
  if not h[1] then return fail('NOTFOUND') end
  local us = now_us()
  local d, p = h[3] or '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0', nil
  local tat, done = struct.unpack('>I8I8', d)
  if n > 0 then
    local seq, other
    p, seq, other = seek(d, n, fingerprint)
    done = math.max(done, answered)
    if other then return fail('CONTENT') end
    if seq then return again(k[2], seq, replid(us), DUPLICATE) end
    if n <= done then return fail('ANSWERED', after_all(d, done)) end
    if p == ROWS_AT and #d >= FULL then return fail('OLD', after_all(d, done)) end
  end

  local role, joined = membership(h[2])
  if user == '' and action == 'delete' then role, joined = 'o', 0 end  -- the server
  if not role or role == '-' then return fail('NOTFOUND') end
  local muted_until
  if role == 'r' then role, muted_until = unmuted(k[1], user, role, us) end
  if role == 'r' or role == 'b' or role == 'c' and limited == 1 then
    local refusal = refused(k[1], role, action)
    if refusal then return refusal end
  end
  local said, note, aimed, author, acts, held, refusal
  if action ~= 'message' then
    target = string.format('%.0f', target)
    refusal, aimed, author = forbidden(k, action, target, user, role, joined)
    if not refusal and action == 'delete' and author ~= user then
      local waiting = redis.call('HGET', k[1], 'acts')
      acts, refusal = with_act(waiting, 'message_deleted', moderator or user, author, target, math.floor(us / 1000), '')
    end
    if refusal then return refusal end
    if action == 'react' then
      if keeps_notes(a) then said, note = compare(k[1], target, user, first, a[8]) else note = false end
    end
  elseif target > 0 and not (sees(k[1], user, joined, target) and redis.call('XRANGE', k[2], target, target)[1]) then
    return fail('NOTFOUND', 'reply_to names no event that you see')
  end
  if files then
    held, refusal = referring(k[1], files, us / 1000000)
    if refusal then return refusal end
  end

  local slow
  if (muted_until or h[5]) and limited == 1 then
    refusal, slow = restrained(k[1], h[5], muted_until, user, role, action, us)
    if refusal then return refusal end
  end
  local counted, count, cost, burst, wrote, last_at = struct.unpack(META, h[1])
  if n > 0 and limited == 1 then
    if tat > us + burst then tat = us end            -- the clock was set back
    tat = math.max(tat, us) + cost
    if tat - us > burst then return fail('RATE', string.format('%.0f', tat - us - burst)) end
  end

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
  if tonumber(h[4] or 0) >= counted then mark_dirty(k[3], a[1], w.at + (a[9] and DELIVERED_MS or COALESCE_MS)) end
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
  if own > 8 and action == 'message' and limited == 1 then
    deliver_own_event(a[own], a[own + 1], a[own + 2], a[own + 3], a[own + 4], a[1], w.seq, w.count, w.event, us,
      format)
  elseif own > 8 then
    deliver_event(a[own], a[own + 1], a[own + 2], a[own + 3], a[own + 4], a[1], w.seq, w.count, w.event, false,
      gone, us, format)
  end
  return answer
end

register('append', append)
