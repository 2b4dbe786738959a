-- The release, and first its common case. It also leaves the line, and refuses a grant.
-- ARGV: token, proc, ending: released, undone (the next hears what this one heard) or lost (it hears "abandoned")
-- 1 released · 3 a grant refused · 2 released before · 0 not this token's
local token, ending = ARGV[1], ARGV[3]

-- That it was released, and with `clears` that nobody is to hear of it.
local function note(clears)
  local added = clears and call('HSET', state, 'l', token, 'o', '') or call('HSET', state, 'l', token)
  -- The state may have gone: what is new lives no longer than it.
  if added > 0 then call('PEXPIRE', state, WEEK) end
end

-- A DEL is never refused for want of memory, and what follows a write is not either: all that is done begins with it.
local value = redis.pcall('GET', key)
if value == token and ending == 'released' and not reserved and call('EXISTS', line) == 0 then
  call('DEL', key)
  note(true)
  return 1
end
