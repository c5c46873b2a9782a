-- Shared by the functions that touch a direct conversation: how to read the record of its pair, in the field `pair` of
-- its hash, and the role that follows from the record. Only pair.lua changes the record.
--
-- The record is msgpack: n, the number of its last change; contact, since when the two are contacts (ms); of, a map from
-- each of the two users to the following fields. A field that is absent is false or empty:
--   contact_n, block_n       the change at which the user's own entry for the other, or own block, changed last; or 0
--   blocked                  since when the user blocks the other (ms)
--   only                     the user accepts messages from contacts only, as of setting number only_n
--   wrote                    the user has written to the other
--   ended                    the user's account has ended
--   asked, ends, message     the user's open request and its end (ms); shown: the other sees it
--   quiet                    until when (ms) no request of the user is shown, because one was declined or not shown

local function pair_of(packed)
  return packed and cmsgpack.unpack(packed) or nil
end

-- The role of `user` towards `other`: 'b' not even a backend may write in the user's name; 'c' only a backend may; 'm'.
-- The role is computed from all reasons each time, because several of them may hold.
local function pair_role(record, user, other)
  if not record then return 'm' end
  local mine, theirs = record.of[user], record.of[other]
  if mine.ended or theirs.ended or mine.blocked or theirs.blocked then return 'b' end
  if theirs.only and not record.contact and not theirs.wrote then return 'c' end
  return 'm'
end

local RECHECK_MS = 30000           -- after a change, copies and record are compared: a failover is over by then
local BLANK_US = 7200000000        -- how far the clock may be put back

-- Whether a record is so old that, with a clock that is put back, the next record of the pair has no lower number. Copies
-- with the numbers of this record stay for a while, and the higher number wins.
local function is_old(record, us)
  return record.n + BLANK_US <= us
end

-- Whether the record says nothing that must be kept.
local function is_blank(record)
  for _, side in pairs(record.of) do
    if side.blocked or side.only_n or side.ended or side.asked or side.quiet then return false end
  end
  return not record.contact
end
