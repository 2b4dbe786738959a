-- What the scripts share.
local MINUTE, CLAIM, RESERVED, LONG = 60000, 400, 500, 200000

-- How many listen. -1 if this user may not publish: then the end of the claim tells the dead from the living.
local function tell(proc, text)
  local heard = redis.pcall(PUBLISH, CHANNEL .. proc, text)
  return type(heard) == 'number' and heard or -1
end

local function split(member)
  return string.match(member, '^(%x+)%.(%x+)$')
end

-- Throws out those of a process to whom nobody listens, as many as stand at `place` and behind it.
local function forget(proc, place)
  local of, gone = proc .. '.', nil
  repeat
    gone = {}
    for _, member in ipairs(call('ZRANGE', line, place, place + 99)) do
      if string.sub(member, 1, #of) ~= of then break end
      gone[#gone + 1] = member
    end
    if gone[1] then call('ZREM', line, unpack(gone)) end
  until not gone[100]
end

-- Tells the one at `place` in the line (`member`, if that is known) that the lock may come free in `ms`, and returns its
-- process; throws out those to whom nobody listens.
local function forewarn(ms, place, member)
  while true do
    member = member or call('ZRANGE', line, place, place)[1]
    if not member then return end
    local proc, token = split(member)
    if proc and tell(proc, 'H ' .. token .. ' ' .. ms) ~= 0 then return proc end
    call('ZREM', line, member)
    if proc then forget(proc, place) end
    member = nil
  end
end

-- Tells the first ones of two more processes than `first` and `second`, each to look a little later: who was told may
-- have stopped.
local function forewarn_more(ms, first, second)
  -- A thread that waits by itself has a longer name, and stops with its process.
  local function whole(proc) return string.sub(proc, 1, 16) end
  local seen, others = {[whole(first)] = true, [whole(second)] = true}, 0
  local members = call('ZRANGE', line, 0, 31)
  -- One process may fill all of that.
  members[#members + 1] = call('ZRANGE', line, -1, -1)[1]
  for _, member in ipairs(members) do
    local proc, token = split(member)
    if proc and not seen[whole(proc)] then
      seen[whole(proc)] = true
      if tell(proc, 'H ' .. token .. ' ' .. ms + 20 * (others + 1)) ~= 0 then others = others + 1 end
      if others == 2 then return end
    end
  end
end

-- Throws out those in front to whom nobody listens, up to the first living one; with `all` also those behind, among the first
-- ones. In this order: who comes back and finds that its process's first was thrown out asks for the others, too. The living
-- hear when the lock may come free, but for `mine`. Whether there were any.
local function forget_dead(ms, mine, all)
  local living, found = {[mine] = true}, false
  for at, member in ipairs(call('ZRANGE', line, 0, 31)) do
    local proc, token = split(member)
    if not living[proc or 0] then
      local later = ms < 0 and 0 or 20 * math.min(at - 1, 20)
      living[proc or 0] = proc and tell(proc, 'H ' .. token .. ' ' .. ms + later) ~= 0
    end
    if not living[proc or 0] then
      call('ZREM', line, member)
      found = true
    elseif not all then
      break
    end
  end
  return found
end

-- Grants the free lock to the first living waiter before `me`; whether there is one. A grant is a short claim that
-- the waiter turns into a hold; beside other libraries the key stays free, and only our own clients are kept off.
local function advance(me, ticket)
  while true do
    local first = call('ZRANGE', line, 0, 1, 'WITHSCORES')
    if not first[1] or first[1] == me or (ticket > 0 and ticket < tonumber(first[2])) then return false end
    local proc, token = split(first[1])
    local turn
    if reserved then
      -- The head keeps its place, since a foreigner may slip in: then its take is refused, which clears `g`. A turn
      -- that has lapsed untaken is not given again: who thaws comes back with its ticket.
      local told = call('HGET', state, 'g') == token
      if told and call('GET', reserved) == token then
        -- Whoever is to notice if it does not come may be the one that leaves now.
        forewarn(call('PTTL', reserved), 1)
        return true
      end
      if proc and not told and tell(proc, 'N ' .. token) ~= 0 then
        call('SET', reserved, token, 'PX', RESERVED)
        turn = RESERVED
      else
        call('ZREM', line, first[1])
        if proc and not told then forget(proc, 0) end
      end
    else
      -- A grantee that does not answer must not stand first again; one that thaws comes back with its ticket. This is
      -- also the write that lets the SET below pass when the server is out of memory.
      call('ZREM', line, first[1])
      if proc and tell(proc, 'G ' .. token .. ' ' .. key) ~= 0 then
        call('SET', key, token, 'PX', CLAIM)
        turn = CLAIM
      elseif proc then
        forget(proc, 0)
      end
    end
    if turn then
      if call('HSET', state, 'g', token) == 1 then call('PEXPIRE', state, WEEK) end
      if not first[3] then return true end
      -- The second in line notices if nobody comes. That one may have stopped too, if it came long ago: then two more
      -- processes notice, each a little later. To tell them each time would be a fifth of a hand-over's cost.
      forewarn(turn, reserved and 1 or 0, first[3])
      local clock = call('TIME')
      local waited = clock[1] * 1000000 + clock[2] - first[4]
      -- Less than nothing: the clock was set back, and since when it waits is not known.
      if waited > LONG or waited < 0 then
        forewarn_more(turn, proc, split(first[3]) or proc)
      end
      return true
    end
  end
end
