//! What a process under `ptrace` is about to do, or has just been told by the kernel, on each processor that the tests run on.

use nix::sys::ptrace;
use nix::unistd::Pid;

/// Of a process that stands still.
pub(crate) struct Registers {
    /// Of the next instruction.
    pub(crate) at: u64,
    /// The system call that has just been made, if it stopped for one; else the one that would be made, if the next instruction makes one.
    pub(crate) call: u64,
    /// Its arguments; the first one is lost when it has been made.
    pub(crate) arguments: [u64; 6],
}

impl Registers {
    pub(crate) fn of(pid: Pid) -> Registers {
        let now = ptrace::getregs(pid).expect("it stands still");
        #[cfg(target_arch = "x86_64")]
        {
            let call = if now.orig_rax.cast_signed() < 0 { now.rax } else { now.orig_rax };
            let arguments = [now.rdi, now.rsi, now.rdx, now.r10, now.r8, now.r9];
            Registers { at: now.rip, call, arguments }
        }
        #[cfg(target_arch = "aarch64")]
        {
            let arguments = std::array::from_fn(|number| now.regs[number]);
            Registers { at: now.pc, call: now.regs[8], arguments }
        }
    }
}

/// Whether the instruction at `at` makes a system call.
pub(crate) fn is_syscall(pid: Pid, at: u64) -> bool {
    let word = ptrace::read(pid, at as ptrace::AddressType).expect("the code can be read");
    if cfg!(target_arch = "x86_64") { word & 0xffff == 0x050f } else { word & 0xffff_ffff == 0xd400_0001 }
}
