-- Shared by the functions of the file slot `{f<p>}`. What lives here: a file's record and its place in the due list.
--
-- The hash of a file: `m` packed as below; `c:<conversation>`, `c:@<user>`: may refer to it (a message, an avatar), with
-- the time (s) at which that was last said, and whether the reference was seen; `u:<user>`: uploaded it. The conversations are more than those that refer,
-- never fewer: each was written before its message (file_pin), and is taken out only after its own slot was asked.
--
-- The due list `{f<p>}:due` has, with the time (ms) from which a router may claim it:
--   <name>           the file, to be removed if nothing has referred to it for long enough
--   <name> <conv>    whether the conversation refers to the file is to be found out
--   !<object>        an object of the store that nothing names any more, to be deleted
--   +<id>            a resumable upload that has ended or was left

local RECORD = '>c1I4c8I8I4BB'     -- state, used (s), generation, size, references, previews, type of a picture
local REFERENCE = '>I4B'           -- pinned (s), 1 once it was seen
local INTENT, STORED, BANNED = 'i', 's', 'x'
local MOST_DUE_MS = 90000000       -- how far ahead anything may be due: a day and an hour

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
