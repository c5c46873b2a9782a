-- find_file: find a message with a file that the user sees.
-- KEYS  conv log
-- ARGV  user hash                                      (user '' is the server)
-- Returns the bytes of the newest such event, '' for the avatar; NOTFOUND
--
-- Keeps true: only present members see files, and only those of events that they may read; that includes the events of
-- an earlier membership.

local function find_file(k, a)
  local h = redis.call('HMGET', k[1], 'm', 'u:' .. a[1], 'h:' .. a[1], 'f:' .. a[2])
  if not h[1] or not h[4] or a[1] ~= '' and not present(h[2]) then return fail('NOTFOUND') end
  local seqs, joined, times = h[4], 0, {}
  if a[1] ~= '' then
    local _, first = membership(h[2])
    joined, times = first, earlier(h[3])
  end
  for p = #seqs - 7, 1, -8 do
    local seq = struct.unpack('>I8', seqs, p)
    local seen = seq >= joined
    for _, time in ipairs(times) do seen = seen or time[1] <= seq and seq <= time[2] end
    if seq == 0 then return '' end
    local entry = seen and redis.call('XRANGE', k[2], string.format('%.0f', seq), string.format('%.0f', seq))[1]
    if entry then return entry[2][2] end
  end
  return fail('NOTFOUND')
end

register('find_file', find_file, {'no-writes'})
