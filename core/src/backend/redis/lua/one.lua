-- A process hears on one channel.
local PUBLISH, CHANNEL = 'PUBLISH', 'ipcmutex:w:'
