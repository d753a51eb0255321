//! How many operators of libtorch a piece of code runs, and what it moves to and from the device.
//!
//! On a GPU every operator is a launch, and every value that Rust reads waits for all launches before it. Both numbers
//! are the same on every machine, so a test on the CPU can hold a loop to limits.
//!
//! ```
//! use c2r_kernels::count;
//! use tch::{Device, Kind, Tensor};
//!
//! let (sum, counts) = count::during(Device::Cpu, || {
//!     let values = Tensor::from_slice(&[1f32, 2.0]); // copied to the device
//!     (values * 2.0).sum(Kind::Float).double_value(&[]) // two operators, and a value read back
//! });
//! assert_eq!(sum, 6.0);
//! assert_eq!((counts.reads, counts.copies, counts.copied_bytes), (1, 1, 8));
//! ```

use std::sync::{Mutex, PoisonError};

use c2r_base::host::{self, Read};
use tch::Device;

/// What [`during`] counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operators that no other operator called; those of the backward pass, too.
    pub calls: u64,
    /// Waits for a value: `double_value` and its like, operators whose result has a size that depends on values
    /// (`nonzero`, a mask as an index), and tensors read with [`c2r_base::host::to_vec`] or copied from a GPU.
    pub reads: u64,
    /// Tensors made of Rust's memory or copied between the CPU and a GPU.
    pub copies: u64,
    /// Their bytes, and those that [`c2r_base::host::to_vec`] read.
    pub copied_bytes: u64,
}

unsafe extern "C" {
    fn c2r_count_begin(gpu: bool) -> u64;
    fn c2r_count_end(handle: u64, out: *mut u64);
}

/// Runs `work`, which computes on `device`, and counts what this thread does in it.
///
/// Threads that `work` starts itself are not counted. On the CPU, everything is as on a GPU ([`c2r_base::host::far`]), and copies are
/// those that a GPU would need: every tensor made of a slice, every tensor read.
///
/// Only one piece of code counts at a time: a call from another thread waits, and one inside `work` never returns.
pub fn during<T>(device: Device, work: impl FnOnce() -> T) -> (T, Counts) {
    static ONE: Mutex<()> = Mutex::new(());
    /// Ends the count when `work` panics, too.
    struct Begun(u64);
    impl Drop for Begun {
        fn drop(&mut self) {
            // SAFETY: the handle is that of a callback of this thread, and the four values have their place.
            unsafe { c2r_count_end(self.0, [0; 4].as_mut_ptr()) }
        }
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Read::so_far();
    // SAFETY: no preconditions but that nobody else counts.
    let begun = Begun(unsafe { c2r_count_begin(device.is_cuda()) });
    let value = host::far(work);
    let handle = begun.0;
    std::mem::forget(begun);
    let mut counted = [0; 4];
    // SAFETY: as above.
    unsafe { c2r_count_end(handle, counted.as_mut_ptr()) };
    let (after, [calls, reads, copies, copied_bytes]) = (Read::so_far(), counted);
    let read = (after.calls - before.calls, after.bytes - before.bytes);
    (value, Counts { calls, reads: reads + read.0, copies, copied_bytes: copied_bytes + read.1 })
}

#[cfg(test)]
mod tests {
    use c2r_base::host;
    use tch::{Kind, Tensor};

    use super::*;

    fn counts(work: impl FnOnce()) -> [u64; 4] {
        let ((), Counts { calls, reads, copies, copied_bytes }) = during(Device::Cpu, work);
        [calls, reads, copies, copied_bytes]
    }

    #[test]
    fn each_kind_is_counted_once() {
        let x = Tensor::from_slice(&[1f32, 2.0, -3.0]).set_requires_grad(true);
        let fixed = x.detach();
        assert_eq!(counts(|| ()), [0; 4]);
        assert_eq!(counts(|| drop(&fixed + 1.0)), [1, 0, 0, 0]);
        // An operator that calls others is one: linear is a transposition, a product and a sum.
        assert_eq!(counts(|| drop(fixed.view([1, 3]).linear(&fixed.view([1, 3]), None::<&Tensor>)))[0], 3);
        assert_eq!(counts(|| drop(Tensor::zeros([7], (Kind::Float, Device::Cpu)))), [1, 0, 0, 0]);
        assert_eq!(counts(|| drop(Tensor::from_slice(&[1i64, 2])))[1..], [0, 1, 16]);
        assert_eq!(counts(|| assert_eq!(fixed.double_value(&[1]), 2.0))[1..], [1, 0, 0]);
        // A mask as an index, values read.
        assert_eq!(counts(|| drop(fixed.index(&[Some(fixed.gt(0.0))])))[1..], [1, 0, 0]);
        assert_eq!(counts(|| drop(host::to_vec::<f32>(&fixed)))[1..], [1, 0, 12]);
        // The square forward, its gradient backward.
        let forward = counts(|| drop(x.square().sum(Kind::Float)))[0];
        let loss = x.square().sum(Kind::Float);
        let backward = counts(|| drop(Tensor::run_backward(&[&loss], &[&x], false, false)))[0];
        assert_eq!(forward, 2);
        assert!((3..9).contains(&backward), "{backward}");
        // Other threads are not counted.
        let other = || {
            let exponential = || drop(Tensor::zeros([7], (Kind::Float, Device::Cpu)).exp());
            std::thread::scope(|scope| scope.spawn(exponential).join().expect("it does not panic"));
        };
        assert_eq!(counts(other), [0; 4]);
    }
}
