//! The allocator of the process, and with `override` libtorch's, too: docs/performance.md.
#![expect(unsafe_code, reason = "mimalloc's options have no safe wrapper; one is set to a constant")]

use libmimalloc_sys::{mi_option_set_default, mi_option_t, mi_option_use_numa_nodes};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, which the bindings leave out: the one before `use_numa_nodes` in `mimalloc.h`, versions 2 and 3.
const PURGE_DELAY: mi_option_t = mi_option_use_numa_nodes - 1;

/// Keeps freed memory for the next tensor instead of giving it back to the system, whose page faults are a sixth of a
/// distillation's time. `MIMALLOC_PURGE_DELAY` in the environment goes before.
pub(crate) fn keep_memory() {
    // SAFETY: takes two integers and has no preconditions.
    unsafe { mi_option_set_default(PURGE_DELAY, -1) }
}

/// Makes the system give out memory in small pages.
///
/// mimalloc asks for huge ones. They make long computations a few percent faster, but a virtual machine may have to get each
/// from its host before it can be used, which costs a short command more than it gains (docs/performance.md).
pub(crate) fn use_small_pages() {
    // Where this is not possible, commands are slower and results the same.
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_thp_disable(true);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn huge_pages_are_switched_off() {
        super::use_small_pages();
        assert_eq!(nix::sys::prctl::get_thp_disable(), Ok(true));
    }
}
