-- Shared by `append` and `may_append`: the arguments of an event to append, and all checks that decide whether it is
-- accepted. The checks only read; what they found is what `append` then writes.
--
-- Keeps true:
-- - The resend of an accepted n gets the first answer again, even if its author was removed since: n is looked up
--   before all other checks. With other content the answer is CONTENT; if n is not above `done`, ANSWERED; if it is
--   below the last 32 rows, so that its answer is not known any more, OLD. From `next` on, every n is usable.
-- - A message that was accepted once is acked again even if its files were removed since: files are checked after n.
--
-- A device's row `d:<user>/<device>`: rate stamp (µs), done, then at most 32 accepted (n, seq, fingerprint) by
-- ascending n. All n <= done are answered, so their rows are deleted: a copy of such a command that was delayed on an
-- old connection is refused, not written again.
-- `e:<seq>` notes the edits of a message, so that its delete takes all its content out of the log.
-- `r:<seq>` notes the last reaction of each user with each emoji to a message: if a reaction repeats it, the ack has the
-- seq of the first event, and no event is written.
-- `f:<hash>` has the seqs of the messages with a file (prelude.lua).

local ACCEPTED_AT = 17
local NO_ACCEPTED = '\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0'
local append_facts, read_for_append, check_append, greatest, accepted

do  -- a library has at most 200 locals that are visible at once
  local FACTS = '>I8I8I8I8c8Bc1'
  local ACCEPTED = 24
  local ACCEPTED_FULL = ACCEPTED_AT - 1 + 32 * ACCEPTED
  local EDITS = 256                  -- of one message
  local REACTIONS = 4096             -- notes of one message; reactions without room for a note are written each time
  local NOTE = '>c12I8B'             -- user and emoji, the seq of the event, 1 if it removes
  local NOTE_SIZE = 21
  local REFERENCES = 4096            -- messages of a conversation with one and the same file

  -- Find n, which is not above all rows: where it belongs; its seq if it is there; whether it is there with other content.
  local function seek(d, n, fingerprint)
    local p = #d + 1
    while p > ACCEPTED_AT do
      local rn, seq = struct.unpack('>I8I8', d, p - ACCEPTED)
      if n > rn then break end
      if n == rn then return p, seq, string.sub(d, p - 8, p - 1) ~= fingerprint end
      p = p - ACCEPTED
    end
    return p
  end

  -- The greatest n among the rows, which is in the last one; 0 if there is none.
  function greatest(d)
    return #d >= ACCEPTED_AT and struct.unpack('>I8', d, #d + 1 - ACCEPTED) or 0
  end

  -- The n after `done` and all rows.
  local function after_all(d, done)
    return string.format('%.0f', math.max(greatest(d), done) + 1)
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
    if now - struct.unpack('>I4', files) > PINNED_S then
      return nil, fail('LATER', 'the files were looked up too long ago')
    end
    local held = {}
    for i, seqs in ipairs(redis.call('HMGET', key, unpack(fields))) do
      if seqs and #seqs >= 8 * REFERENCES then return nil, fail('CONFLICT', 'this file was sent here too often') end
      held[2 * i - 1], held[2 * i] = fields[i], seqs or ''
    end
    return held
  end

  -- The row with (n, seq, fingerprint) at p, without the entries that `done` or the bound ends.
  function accepted(d, p, tat, done, n, seq, fingerprint)
    if p > #d and greatest(d) <= done then  -- nearly always: all that was sent before is answered
      return struct.pack('>I8I8I8I8c8', tat, done, n, seq, fingerprint)
    end
    local from = ACCEPTED_AT
    while from < p and struct.unpack('>I8', d, from) <= done do from = from + ACCEPTED end
    if #d - from >= ACCEPTED_FULL - ACCEPTED_AT then from = from + ACCEPTED end
    return struct.pack('>I8I8', tat, done) .. string.sub(d, from, p - 1) .. struct.pack('>I8I8c8', n, seq, fingerprint)
      .. string.sub(d, p)
  end

  -- The arguments of an event: action, pins of its files (nil: none), moderator (nil: none), limited, format of users' rows,
  -- n, done, seen, target (of all actions but `message` its digits), fingerprint, first. Pins and moderator are removed
  -- from `a`.
  function append_facts(a)
    local action, files, moderator = a[6], nil, nil
    if action == 'files' then action, files = 'message', table.remove(a, 9)
    elseif action == 'moderate' then action, moderator = 'delete', table.remove(a, 9) end
    local n, done, seen, target, fingerprint, flags, first = struct.unpack(FACTS, a[7])
    if action ~= 'message' then target = string.format('%.0f', target) end
    return action, files, moderator, flags % 2 == 1, flags >= 2 and 2 or 1, n, done, seen, target, fingerprint, first
  end

  -- The fields of the conversation that an event needs: m, u:, d:, routed, rules, lagging.
  function read_for_append(k, a)
    return redis.call('HMGET', k[1], 'm', 'u:' .. a[4], 'd:' .. a[5], 'routed', 'rules', 'lagging')
  end

  -- Decide whether an event is accepted; `h`: the fields (`read_for_append`), `us`: the time (µs). Returns
  --   the error, if it is not; or nil, and
  --   the seq with which its n was accepted before, nil if it is new;
  --   if it is new: the place of n among the rows, the rate's stamp after it, `done`;
  --   of a reaction: the seq that it repeats, the new notes (`compare`; false: it has none);
  --   of an edit, delete or reaction: the target's bytes; of the delete of another user's message: the acts with this one;
  --   of a message with files: their references (`referring`); in slow mode whether the time is to be noted;
  --   and the conversation's meta.
  function check_append(k, a, h, us, action, files, moderator, limited, n, answered, target, fingerprint, first)
    local user = a[4]
    if not h[1] then return fail('NOTFOUND') end
    local d, p = h[3] or NO_ACCEPTED, nil
    local tat, done = struct.unpack('>I8I8', d)
    if n > 0 then
      local seq, other
      if n > greatest(d) then p = #d + 1 else p, seq, other = seek(d, n, fingerprint) end
      done = math.max(done, answered)
      if other then return fail('CONTENT') end
      if seq then return nil, seq end
      if n <= done then return fail('ANSWERED', after_all(d, done)) end
      if p == ACCEPTED_AT and #d >= ACCEPTED_FULL then return fail('OLD', after_all(d, done)) end
    end

    local role, joined = membership(h[2])
    if user == '' and action == 'delete' then role, joined = 'o', 0 end  -- the server
    if not role or role == '-' then return fail('NOTFOUND') end
    local muted_until
    if role == 'r' then role, muted_until = unmuted(k[1], user, role, us) end
    if role == 'r' or role == 'b' or role == 'c' and limited then
      local refusal = refused(k[1], role, action)
      if refusal then return refusal end
    end
    local said, note, aimed, author, acts, held, slow, refusal
    if action ~= 'message' then
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

    if (muted_until or h[5]) and limited then
      refusal, slow = restrained(k[1], h[5], muted_until, user, role, action, us)
      if refusal then return refusal end
    end
    local counted, count, cost, burst, wrote, last_at = struct.unpack(META, h[1])
    if n > 0 and limited then
      if tat > us + burst then tat = us end            -- the clock was set back
      tat = math.max(tat, us) + cost
      if tat - us > burst then return fail('RATE', string.format('%.0f', tat - us - burst)) end
    end
    return nil, nil, p, tat, done, said, note, aimed, acts, held, slow, counted, count, cost, burst, wrote, last_at
  end
end
