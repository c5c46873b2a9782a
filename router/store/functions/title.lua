-- title: give a group or channel a title; one `title` event.
-- KEYS  conv log dirty
-- ARGV  conv channel cap actor title first rest        (actor '' is the server)
-- Returns as append; NOTFOUND READONLY_
--
-- Keeps true: only owners and admins do; a direct conversation has none.

local function title(k, a)
  local h = redis.call('HMGET', k[1], 'm', 'kind', 'u:' .. a[4])
  if not h[1] or a[4] ~= '' and not present(h[3]) then return fail('NOTFOUND') end
  local role = h[3] and string.sub(h[3], 1, 1)
  if h[2] == 'd' then return fail('READONLY_', 'a direct conversation has no title') end
  if a[4] ~= '' and role ~= 'o' and role ~= 'a' then
    return fail('READONLY_', 'this takes the role owner or admin')
  end
  local last, count, cost, burst, wrote = struct.unpack(META, h[1])
  local w, err = enter(k[2], last, count, wrote, now_us(), 0, a[6], a[7], nil)
  if not w then return err end
  mark(k[3], a[1], w.at + COALESCE_MS)
  return settle(k, a[2], a[3], w, cost, burst, 'title', a[5])
end

register('title', title)
