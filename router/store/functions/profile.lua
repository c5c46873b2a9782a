-- profile: change fields of a user's profile and privacy.
-- KEYS  user
-- ARGV  cost(µs) burst(µs) presence_channel profile_signal channel signal field value ...
--       value '' clears a field; cost and burst are of changes of `messages`; the signals notify watchers, and the
--       user's own sessions; the value of `avatar` is the time (s) of the file's pin, and its hash
-- Returns {number of the last change}; NOTFOUND | RATE | LATER
--
-- Keeps true: fields are set one by one, so if two calls change different fields at the same time, both changes stay.
-- `profile_n` rises with every change, over failovers too; `messages_n` is that of the last change of `messages`.
-- An avatar is a reference to its file: the file was pinned before, and the old one is added to `freed` in the same
-- step, until a router has told the file's own slot (jobs/finisher.py).

local FIRST_FIELD = 7            -- in ARGV

local function profile(k, a)
  local names = {}
  for i = FIRST_FIELD, #a, 2 do names[#names + 1] = a[i] end
  local us, h = now_us(), redis.call('HMGET', k[1], 'created', 'profile_n', 'freed', unpack(names))
  if not h[1] then return fail('NOTFOUND') end
  local sets, clears, moves = {}, {}, false
  for i, name in ipairs(names) do
    local was, value = h[i + 3] or '', a[FIRST_FIELD + 2 * i - 1]
    if name == 'avatar' and value ~= '' then
      if us / 1000000 - struct.unpack('>I4', value) > PINNED_S then return fail('LATER', 'the pin is too old') end
      value = string.sub(value, 5)
    end
    if was ~= value then
      if name == 'messages' then moves = true end
      if name == 'avatar' and was ~= '' then sets[#sets + 1], sets[#sets + 2] = 'freed', (h[3] or '') .. was end
      if value == '' then
        clears[#clears + 1] = name
      else
        sets[#sets + 1], sets[#sets + 2] = name, value
      end
    end
  end
  if #sets + #clears == 0 then return {digits(tonumber(h[2] or 0))} end
  if moves then
    local refused = take_from_rate(k[1], 'privacies', tonumber(a[1]), tonumber(a[2]))
    if refused then return refused end
  end
  local number = digits(math.max(us, tonumber(h[2] or 0) + 1))
  if moves then sets[#sets + 1], sets[#sets + 2] = 'messages_n', number end
  redis.call('HSET', k[1], 'profile_n', number, unpack(sets))
  if #clears > 0 then redis.call('HDEL', k[1], unpack(clears)) end
  redis.call('SPUBLISH', a[3], a[4])
  redis.call('SPUBLISH', a[5], a[6])
  return {number}
end

register('profile', profile)
