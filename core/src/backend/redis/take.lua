-- ARGV: token, ttl, info, wait, ticket, floor, compat, proc
-- {1, fence, abandoned, unlined} owned · {0, pttl, rank, ticket, fresh, kind, info, held ms, waiters} not · {2} ended before
local token, ttl, info, wait = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local ticket, floor, compat, proc = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1', ARGV[8]
local me = proc .. '.' .. token
local value = redis.call('GET', key)
local was = redis.call('HMGET', state, 'o', 'l', 'f', 'a', 'q', 'g', 'i', 's')
local owner = was[1]
-- A copy of the take that arrives after the release of the same token must not take again.
if was[2] == token then return {2} end
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now / 1000)

local function own(confirm)
  -- Out of memory, a confirm goes through since it has written before; a plain take stops at the INCR, nothing done.
  if confirm then redis.call('PEXPIRE', key, ttl) end
  local abandoned = (owner and owner ~= token) and 1 or 0
  local least = math.max(now, floor + 1)
  if redis.call('INCR', fence) < least then redis.call('SET', fence, string.format('%.0f', least)) end
  redis.call('PEXPIRE', fence, WEEK)
  -- Lua's number of an INCR is inexact beyond 2^53; the string is not.
  local number = redis.call('GET', fence)
  redis.call('SET', key, token, 'PX', ttl)
  if compat then redis.call('DEL', reserved) end
  redis.call('HSET', state, 'o', token, 'f', number, 'a', abandoned, 'i', info, 'p', proc,
    's', string.format('%.0f', now_ms))
  redis.call('HDEL', state, 'g')
  redis.call('PEXPIRE', state, WEEK)
  -- Who was granted it was taken out of the line; who was not must still stand there, or the line was lost.
  local stood = redis.call('ZREM', line, me)
  return {1, number, abandoned, (confirm or stood == 1) and 0 or 1}
end

local left, kind = 0, 1
if value == token then
  if owner ~= token then return own(true) end
  redis.call('PEXPIRE', key, ttl)
  return {1, was[3], tonumber(was[4]), 0}
elseif value then
  left = redis.call('PTTL', key)
  kind = (value == owner and 0) or (value == was[6] and 1) or 2
else
  local kept = compat and redis.call('GET', reserved)
  if kept and kept ~= token then
    left = redis.call('PTTL', reserved)
  elseif kept or not advance(me, ticket, compat) then
    return own(false)
  else
    left = compat and RESERVED or CLAIM
  end
end

local fresh, rank = 0, 0
if wait then
  if not redis.call('ZSCORE', line, me) then
    local last = tonumber(was[5]) or 0
    if ticket == 0 then ticket = math.max(now, last + 1) end
    redis.call('HSET', state, 'q', string.format('%.0f', math.max(ticket, last)))
    redis.call('PEXPIRE', state, WEEK)
    redis.call('ZADD', line, string.format('%.0f', ticket), me)
    fresh = 1
  end
  redis.call('PEXPIRE', line, MINUTE)
  rank = redis.call('ZRANK', line, me)
end
local shown, held = '', 0
if kind == 0 then shown, held = was[7] or '', now_ms - (tonumber(was[8]) or now_ms) end
return {0, left, rank, string.format('%.0f', ticket), fresh, kind, shown, held, redis.call('ZCARD', line)}
