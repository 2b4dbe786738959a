//! Behaviour tests of ipcmutex.
