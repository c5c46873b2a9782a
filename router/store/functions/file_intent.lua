-- file_intent: note that a router is about to put a file's bytes into the store.
-- KEYS  file due
-- ARGV  name gen intent_s
--       gen: 8 characters, the generation of the objects if this file is new; intent_s: how long an upload may take
-- Returns {state, gen, size, previews}; REJECTED
--
-- Keeps true:
-- - An object is named here before it is put, so the object of an upload that broke off is found and deleted.
-- - A generation is never used twice: a late delete of a file that was removed cannot delete the objects of the same
--   bytes if they were uploaded again since.

local function file_intent(k, a)
  local now, f = now_s(), file_of(k[1])
  if f and f.state == BANNED then return fail('REJECTED', 'this file was removed') end
  f = f or {state = INTENT, gen = a[2], size = 0, refs = 0, previews = 0}
  f.used = now
  keep_file(k[1], f)
  if f.state == INTENT then due_at(k[2], a[1], now + tonumber(a[3])) end
  return {f.state, f.gen, f.size, f.previews}
end

register('file_intent', file_intent)
