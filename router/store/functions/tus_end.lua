-- tus_end: forget a resumable upload; its parts are due to be deleted.
-- KEYS  tus due
-- ARGV  id user                                        (user '': only if its time has come)
-- Returns its user ('' if it was forgotten before), nil if its time has not come; NOTFOUND if it is not this user's
--
-- Keeps true: the due list names every part before the upload is deleted.

local function tus_end(k, a)
  local h = redis.call('HMGET', k[1], 'user', 'parts', 'ends')
  if a[2] ~= '' and h[1] ~= a[2] then return fail('NOTFOUND') end
  local now, item = now_s(), '+' .. a[1]
  if h[1] and a[2] == '' and tonumber(h[3]) > now then
    due_at(k[2], item, tonumber(h[3]))
    return nil
  end
  for object in string.gmatch(h[2] or '', '%S+') do due_at(k[2], '!' .. object, now) end
  redis.call('UNLINK', k[1])
  redis.call('ZREM', k[2], item)
  return h[1] or ''
end

register('tus_end', tus_end, {'allow-oom'})
