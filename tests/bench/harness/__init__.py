"""Measures ipcmutex beside what people use today: `make bench`."""
