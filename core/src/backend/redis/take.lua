-- ARGV: token, ttl, proc, info, ticket (empty: does not wait; 0: a newcomer), floor, and who hears of a loss, if not proc
-- {1, fence, abandoned, unlined} owned · {0, pttl, rank, ticket, fresh, kind, info, held ms, waiters} not · {2} ended before;
-- each with the token behind it: an answer to something else is known by that.
local token, ttl, proc, info, ticket, floor = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local was = call('HMGET', state, 'o', 'l', 'f')
local owner, last = was[1], tonumber(was[3]) or 0
-- A copy of the take that arrives after the release of the same token must not take again.
if was[2] == token then return {2, token} end
local me = proc .. '.' .. token
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now / 1000)

-- The key is ours: makes it a hold.
local function own(unlined)
  local abandoned = (owner and owner ~= '' and owner ~= token) and 1 or 0
  local fence = math.max(last + 1, now, floor + 1)
  if fence < 9007199254740992 then
    fence = string.format('%.0f', fence)
  else
    -- Lua cannot count beyond 2^53; the server can.
    if last < floor then call('HSET', state, 'f', ARGV[6]) end
    call('HINCRBY', state, 'f', 1)
    fence = call('HGET', state, 'f')
  end
  call('HSET', state, 'o', token, 'f', fence, 'a', abandoned, 'i', info, 'p', ARGV[7] or proc, 's', now_ms, 'g', '')
  -- Once an hour is enough for what lives a week: a token is about the time of its take.
  if math.floor(now / 3600000000) ~= math.floor(last / 3600000000) then call('PEXPIRE', state, WEEK) end
  return {1, fence, abandoned, unlined, token}
end

-- The common case: a newcomer, nobody waits, and nobody holds it. Out of memory it stops here, and nothing is done.
if (ticket or 0) == 0 and not reserved and call('EXISTS', line) == 0 and call('SET', key, token, 'NX', 'PX', ttl) then
  return own(1)
end

local value = call('GET', key)
local left = 0
if value == token then
  -- Out of memory, a confirm goes through since it begins with this.
  call('PEXPIRE', key, ttl)
  if owner ~= token then return own(0) end
  return {1, was[3], tonumber(call('HGET', state, 'a')), 0, token}
elseif value then
  left = call('PTTL', key)
else
  local kept = reserved and call('GET', reserved)
  if kept and kept ~= token then
    left = call('PTTL', reserved)
  elseif kept or not advance(me, ticket or 0) then
    call('SET', key, token, 'PX', ttl)
    if reserved then call('DEL', reserved) end
    -- Who was granted it was taken out of the line; who was not must still stand there, or the line was lost.
    return own(1 - call('ZREM', line, me))
  else
    left = reserved and RESERVED or CLAIM
  end
end

local also = call('HMGET', state, 'g', 'q', 'i', 's')
local kind = 1
if value then kind = (value == owner and 0) or (value == also[1] and 1) or 2 end
local fresh, rank, size = 0, 0, nil
if ticket then
  local latest, place = tonumber(also[2]) or 0, ticket
  if place == 0 then place = math.max(now, latest + 1) end
  fresh = call('ZADD', line, 'NX', string.format('%.0f', place), me)
  if fresh == 1 then
    if place > latest and call('HSET', state, 'q', string.format('%.0f', place)) == 1 then call('PEXPIRE', state, WEEK) end
  elseif ticket == 0 then
    place = tonumber(call('ZSCORE', line, me))
  end
  call('PEXPIRE', line, MINUTE)
  size = call('ZCARD', line)
  -- A newcomer is the last one.
  rank = (fresh == 1 and ticket == 0) and size - 1 or call('ZRANK', line, me)
  ticket = place
end
local shown, held = '', 0
if kind == 0 then shown, held = also[3] or '', now_ms - (tonumber(also[4]) or now_ms) end
return {0, left, rank, string.format('%.0f', ticket or 0), fresh, kind, shown, held, size or call('ZCARD', line), token}
