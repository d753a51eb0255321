//! Keeps freed memory for the next tensor while c2r computes, as the command's allocator does: the C library gives every large
//! tensor back to the system at once, and the page faults of the next one cost a tenth of an attack's time.

/// Dropped, it gives the memory back and the allocator its usual settings.
pub(crate) struct KeepMemory(());

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::sync::Mutex;

    use libc::{M_MMAP_MAX, M_TRIM_THRESHOLD, malloc_trim, mallopt};

    use super::KeepMemory;

    /// How many of us there are.
    static HOLDERS: Mutex<usize> = Mutex::new(0);

    /// `M_MMAP_MAX` and `M_TRIM_THRESHOLD` of `man 3 mallopt`.
    const USUAL: (i32, i32) = (65536, 128 << 10);
    const KEEPING: (i32, i32) = (0, i32::MAX);

    fn set((mmap_max, trim_threshold): (i32, i32)) {
        // SAFETY: two integers each, for an allocator that takes them at any time.
        unsafe {
            mallopt(M_MMAP_MAX, mmap_max);
            mallopt(M_TRIM_THRESHOLD, trim_threshold);
        }
    }

    impl KeepMemory {
        pub(crate) fn new() -> Self {
            let mut holders = HOLDERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *holders += 1;
            set(KEEPING);
            Self(())
        }
    }

    impl Drop for KeepMemory {
        fn drop(&mut self) {
            let mut holders = HOLDERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *holders -= 1;
            if *holders == 0 {
                set(USUAL);
                // SAFETY: no preconditions.
                unsafe { malloc_trim(0) };
            }
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
impl KeepMemory {
    pub(crate) fn new() -> Self {
        Self(())
    }
}
