-- A process hears on one channel.
local PUBLISH, CHANNEL = 'PUBLISH', 'ipcmutex:w:'
local function is_moving() return false end
