-- The take, and first its common case: what follows is not even begun there.
-- ARGV: token, ttl, proc, info, ticket (empty: does not wait; 0: a newcomer), floor, and who hears of a loss, if not proc
-- {1, fence, abandoned, unlined} owned · {0, pttl, rank, ticket, fresh, kind, info, held ms, waiters} not · {2} ended before;
-- each with the token behind it: an answer to something else is known by that.
local token, ttl, proc, ticket = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
local was = call('HMGET', state, 'o', 'l', 'f')
local owner, last = was[1], tonumber(was[3]) or 0
-- A copy of the take that arrives after the release of the same token must not take again.
if was[2] == token then return {2, token} end
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local HOUR = 3600000000

-- The key is ours: makes it a hold, and takes `member` out of the line.
local function make(unlined, member)
  if member then unlined = unlined - call('ZREM', line, member) end
  local abandoned = (owner and owner ~= '') and 1 or 0
  -- Taken before, and it has lapsed: what it was told then, if anybody heard it.
  if owner == token then abandoned = tonumber(call('HGET', state, 'a')) or 0 end
  local fence, floor = now, tonumber(ARGV[6])
  if last >= fence then fence = last + 1 end
  if floor >= fence then fence = floor + 1 end
  if fence < 9007199254740992 then
    fence = string.format('%.0f', fence)
  else
    -- Lua cannot count beyond 2^53; the server can.
    if last < floor then call('HSET', state, 'f', ARGV[6]) end
    call('HINCRBY', state, 'f', 1)
    fence = call('HGET', state, 'f')
  end
  call('HSET', state, 'o', token, 'f', fence, 'a', abandoned, 'i', ARGV[4], 'p', ARGV[7] or proc, 's', string.format('%.0f', (now - now % 1000) / 1000))
  -- Once an hour is enough for what lives a week: a token is about the time of its take.
  if now - now % HOUR ~= last - last % HOUR then call('PEXPIRE', state, WEEK) end
  return {1, fence, abandoned, unlined, token}
end

-- The same. Where a part of it is refused, for want of a right, it is undone: else the key would be nobody's for a lease.
local function own(unlined, member)
  local made, answer = pcall(make, unlined, member)
  if made then return answer end
  redis.pcall('DEL', key)
  redis.pcall('HSET', state, 'o', owner or '')
  error(answer, 0)
end

-- A newcomer, nobody waits, and nobody holds it. Out of memory it stops here, and nothing is done.
if (ticket == '0' or ticket == '') and not reserved and call('EXISTS', line) == 0 and call('SET', key, token, 'NX', 'PX', ttl) then
  return own(1)
end
