-- KEYS: lock and state of each hold. ARGV: token and ttl of each; 0: looked for alone. For each: 1 it stands, 0 lost.
local renewed = {}
for at = 1, #KEYS, 2 do
  -- pcall: a key of another type is a loss of that hold alone.
  if redis.pcall('GET', KEYS[at]) == ARGV[at] then
    if ARGV[at + 1] ~= '0' then
      redis.call('PEXPIRE', KEYS[at], ARGV[at + 1])
      redis.call('PEXPIRE', KEYS[at + 1], 604800000)
    end
    renewed[#renewed + 1] = 1
  else
    renewed[#renewed + 1] = 0
  end
end
return renewed
