-- Shared by the functions of a group or channel: its rules, the mutes and bans of its users, who may manage members, and
-- the acts that the audit names.
--
-- `rules`: who may post and add members, and slow mode; absent while all of them have their defaults.
-- `s:<user>`: when (µs) the user's last message in slow mode was written. All devices of the user share it.
-- `x:<user>`: a mute: the role that the user has apart from the mute, and its end (ms; 0: none). While there is one, the
--   member row has the role 'r', so `append` looks for a mute only there, and functions of earlier releases refuse, too.
-- `b:<user>`: a ban, msgpack {end (ms; 0: none), since (ms), by ('': a server key; AS_SERVER and the name: a moderator of
--   the deployment), reason}.
-- `mutes`: until when (ms) some user may be muted here; absent if no user was. Entries of lists look for mutes only then.
-- All but `rules` and `mutes` belong to the user: leaving, joining and a new role do not change them. They end by this server's clock.
-- `acts`: acts that are not in the audit yet, each its length and msgpack {action, by, user, seq, at (ms), reason}. A
--   router moves them to the audit (move_acts.lua).

local RULES = '>I4c1c1'            -- seconds of slow mode; who may post; who may add members
local ALL, ADMINS = '*', 'a'
local FOR_EVER = 9007199254740991  -- in `mutes`: a mute without an end
local MOST_ACTS = 65536            -- bytes of acts that wait; if there are more, no router runs

local AUDIT_KEPT = 10000           -- entries of the audit of a partition; the oldest are removed
local AS_SERVER = '!'              -- before the name of a moderator who acted as the server; in no name of a user
local PAST = '`until` must be later than now'
local HAS_ROLE = 'the user has a role in the deployment: this takes the server key'
local RANK = {o = 4, a = 3, m = 2, r = 1}

local function high(role) return role == 'o' or role == 'a' end

local function rules_of(packed)
  if not packed then return 0, ALL, ADMINS end
  return struct.unpack(RULES, packed)
end

-- The mute of a user from `x:<user>`: the role apart from it, and its end (ms; 0: none).
local function mute_of(packed)
  local role, ends = string.match(packed, '^(%S) (%d+)$')
  return role, tonumber(ends)
end

local function mute(role, ends)
  return string.format('%s %.0f', role, ends)
end

local function is_over(ends, us)
  return ends > 0 and ends * 1000 <= us
end

-- The role of a member apart from a mute, and the end of the mute if it is not over.
local function unmuted(key, user, role, us)
  local packed = role == 'r' and redis.call('HGET', key, 'x:' .. user)
  if not packed then return role, nil end
  local own, ends = mute_of(packed)
  -- A node of a release without mutes may have added the user since as a reader.
  return own == '-' and role or own, not is_over(ends, us) and ends or nil
end

-- The error if a mute or the rules refuse an event of a user. `slow`: the time is to be written to `s:<user>`.
local function restrained(key, rules, ends, user, role, action, us)
  if action == 'delete' then return nil end
  if ends then return fail('MUTED', ends > 0 and string.format('%.0f', ends * 1000 - us) or '') end
  local slow_s, posting = rules_of(rules)
  if high(role) or action == 'react' then return nil end
  if posting == ADMINS then return fail('READONLY_', 'only owners and admins may write here') end
  if slow_s == 0 or action ~= 'message' then return nil end
  local last = tonumber(redis.call('HGET', key, 's:' .. user) or 0)
  local wait = last + slow_s * 1000000 - us
  if wait > 0 and last <= us then return fail('SLOW', string.format('%.0f', wait)) end  -- else it is of another clock
  return nil, true
end

local function ban_of(packed)
  return packed and cmsgpack.unpack(packed)
end

-- The error if `actor`, whose role is `by`, may not do this to a member; else nil. `role`: the user's role now (nil: no
-- member). Admins manage members and readers; only owners may change admins and owners. Actor '' is the server. `adding`:
-- members may add members and readers.
local function may_not_manage(actor, user, action, kind, by, role, wanted, adding)
  if kind == 'd' then return fail('READONLY_', 'the members of a direct conversation never change') end
  if actor == '' then return nil end
  local itself = actor == user
  if itself and (action == 'mute' or action == 'unmute' or action == 'ban' or action == 'unban') then
    return fail('READONLY_', 'no user may do this to themselves')
  end
  local own = itself and (action == 'remove' or action == 'put' and RANK[wanted] < RANK[role])
  if own then return nil end
  local adds = action == 'put' and not role and not high(wanted)
  if adds and adding and by == 'm' then return nil end
  if not high(by) then return fail('READONLY_', 'this takes the role owner or admin') end
  local rises = action == 'put' and high(wanted)
  if by == 'a' and wanted ~= role and (high(role) or rises) then
    return fail('READONLY_', 'this takes the role owner: it concerns an owner or admin')
  end
end

-- Add an act of which `user` is the target to the audit of a partition of users.
local function add_to_audit(audit, action, by, user, at, reason)
  redis.call('XADD', audit, 'MAXLEN', '~', AUDIT_KEPT, '*', 'e',
    cmsgpack.pack({action = action, actor = by, user = user, at = at, reason = reason}))
end

-- The acts with another one, or nil and the error if too many wait.
local function with_act(acts, action, by, user, seq, at, reason)
  if #(acts or '') > MOST_ACTS then return nil, fail('LATER', 'too many acts wait for the audit') end
  local act = cmsgpack.pack({action, by, user, seq, at, reason})
  return (acts or '') .. struct.pack('>I4', #act) .. act
end
