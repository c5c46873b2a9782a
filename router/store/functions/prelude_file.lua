-- Shared by the functions of the file slot `{f<p>}`: a file's record and its entry in the due list.
--
-- The hash of a file: `m` packed as below; `c:<conversation>`, `c:@<user>`: may refer to it (a message, an avatar), with
-- the time (s) of the last pin, and whether the reference was seen; `u:<user>`: uploaded it. There may be more
-- conversations than those that refer to the file, never fewer: each was added before its message (file_pin), and is
-- removed only after its own slot was asked.
--
-- The due list `{f<p>}:due` has, with the time (ms) from which a router may claim it:
--   <name>           the file, to be removed if it has had no reference for long enough
--   <name> <conv>    a pin, to be checked: does the conversation refer to the file?
--   !<object>        an object of the store that no record names any more, to be deleted
--   +<id>            a resumable upload that has ended or was abandoned

local RECORD = '>c1I4c8I8I4BB'     -- state, used (s), generation, size, references, previews, type of a picture
local REFERENCE = '>I4B'           -- pinned (s), 1 once it was seen
local INTENT, STORED, BANNED = 'i', 's', 'x'
local MOST_DUE_MS = 90000000       -- how far ahead an item may be due: a day and an hour

local function now_s()
  return math.floor(now_us() / 1000000)
end

local function file_of(key)
  local m = redis.call('HGET', key, 'm')
  if not m then return nil end
  local state, used, gen, size, refs, previews, picture = struct.unpack(RECORD, m)
  return {state = state, used = used, gen = gen, size = size, refs = refs, previews = previews, picture = picture}
end

local function keep_file(key, f)
  redis.call('HSET', key, 'm', struct.pack(RECORD, f.state, f.used, f.gen, f.size, f.refs, f.previews, f.picture or 0))
end

local function due_at(due, item, seconds)
  redis.call('ZADD', due, string.format('%.0f', seconds * 1000), item)
end
