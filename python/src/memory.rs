//! Keeps freed memory for the next tensor while c2r computes, as the command's allocator does: the C library gives every large
//! tensor back to the system at once, and the page faults of the next one cost a tenth of an attack's time.

/// Dropped, it gives the memory back, and from then on the allocator keeps what it would have come to keep by itself.
pub(crate) struct KeepMemory(());

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::{
        env,
        sync::{LazyLock, Mutex},
    };

    use libc::{M_MMAP_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, malloc_trim, mallopt};

    use super::KeepMemory;

    /// How many of us there are.
    static HOLDERS: Mutex<usize> = Mutex::new(0);

    const KEEPING: &[(i32, i32)] = &[(M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, i32::MAX)];

    /// The allocator raises its thresholds as a program frees larger and larger blocks, and never again once `mallopt` was
    /// called: its first values, and no others, would cost the caller's own training half of its speed. So these are the
    /// values that the raising ends at, `DEFAULT_MMAP_THRESHOLD_MAX` of glibc's malloc.c and twice that. `M_MMAP_MAX` has
    /// its default of `man 3 mallopt`.
    const AFTERWARDS: &[(i32, i32)] =
        &[(M_MMAP_MAX, 65536), (M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 64 << 20)];

    /// What sets the same values for a whole process (`man 3 mallopt`, "Tunables" in glibc's manual).
    const VARIABLES: [&str; 4] =
        ["MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"];
    const TUNABLES: [&str; 4] = ["malloc.mmap_max", "malloc.mmap_threshold", "malloc.trim_threshold", "malloc.top_pad"];

    /// Whether the user has chosen how the allocator keeps memory: then it stays so.
    static IS_CHOSEN: LazyLock<bool> = LazyLock::new(|| {
        let tunables = env::var_os("GLIBC_TUNABLES").unwrap_or_default();
        let tunables = tunables.to_string_lossy();
        VARIABLES.iter().any(|name| env::var_os(name).is_some()) || TUNABLES.iter().any(|name| tunables.contains(name))
    });

    fn set(values: &[(i32, i32)]) {
        for &(parameter, value) in values {
            // SAFETY: two integers, for an allocator that takes them at any time.
            unsafe { mallopt(parameter, value) };
        }
    }

    impl KeepMemory {
        pub(crate) fn new() -> Self {
            let mut holders = HOLDERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *holders += 1;
            if *holders == 1 && !*IS_CHOSEN {
                set(KEEPING);
            }
            Self(())
        }
    }

    impl Drop for KeepMemory {
        fn drop(&mut self) {
            let mut holders = HOLDERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *holders -= 1;
            if *holders == 0 && !*IS_CHOSEN {
                set(AFTERWARDS);
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
