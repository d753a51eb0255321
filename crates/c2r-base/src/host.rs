//! Values that cross between Rust's memory and a device.
//!
//! Everything that a loop does per step reads tensors through [`to_vec`]: on a GPU it waits for all that was launched,
//! and on the CPU nothing but this count would show it (`c2r_kernels::count`).

use std::cell::Cell;

use tch::{Device, Tensor, kind::Element};

thread_local! {
    static READ: Cell<Read> = const { Cell::new(Read { calls: 0, bytes: 0 }) };
    static FAR: Cell<bool> = const { Cell::new(false) };
}

/// Whether Rust reads values on `device` without waiting: on the CPU, but not within [`far`].
///
/// Where it does, small steps are faster as loops over plain arrays than as a dozen operators.
pub fn is_at_hand(device: Device) -> bool {
    device == Device::Cpu && !FAR.get()
}

/// Runs `work` as if the CPU were a GPU: while it runs, [`is_at_hand`] returns false on this thread.
pub fn far<T>(work: impl FnOnce() -> T) -> T {
    /// Restores it when `work` panics, too.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            FAR.set(self.0);
        }
    }
    let _before = Before(FAR.replace(true));
    work()
}

/// What a thread has read with [`to_vec`] from tensors on the CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Read {
    /// Calls of [`to_vec`].
    pub calls: u64,
    /// Their values, in bytes.
    pub bytes: u64,
}

impl Read {
    /// Of this thread, since it began.
    pub fn so_far() -> Self {
        READ.get()
    }
}

/// The values of a tensor of any shape and device, row by row, converted to `T` if it holds another dtype.
///
/// # Panics
/// If libtorch cannot copy them, as after an error of a GPU.
pub fn to_vec<T: Element + Copy>(tensor: &Tensor) -> Vec<T> {
    let values = Vec::try_from(tensor.flatten(0, -1)).expect("values of a tensor can be copied to Rust");
    if tensor.device() == Device::Cpu {
        let Read { calls, bytes } = READ.get();
        READ.set(Read { calls: calls + 1, bytes: bytes + size_of_val(values.as_slice()) as u64 });
    }
    values
}

/// A tensor of the host on `device`, without waiting: what is computed there next comes after the copy by itself.
///
/// To a GPU it travels from pinned memory, which libtorch keeps until the copy is done, so a loop that only sends runs ahead
/// of the device. On the CPU it is the tensor itself.
pub fn send(host: &Tensor, device: Device) -> Tensor {
    if device.is_cuda() {
        host.internal_pin_memory(device).to_device_(device, host.kind(), true, false)
    } else {
        host.to_device(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_at_hand_but_not_within_far() {
        assert!(is_at_hand(Device::Cpu) && !is_at_hand(Device::Cuda(0)));
        assert_eq!(
            far(|| (is_at_hand(Device::Cpu), far(|| is_at_hand(Device::Cpu)), is_at_hand(Device::Cpu))),
            (false, false, false)
        );
        assert!(is_at_hand(Device::Cpu));
        assert!(std::panic::catch_unwind(|| far(|| panic!("on purpose"))).is_err() && is_at_hand(Device::Cpu));
    }

    #[test]
    fn values_come_row_by_row_and_are_counted() {
        let before = Read::so_far();
        let tensor = Tensor::from_slice(&[1i64, 2, 3, 4]).view([2, 2]).tr();
        assert_eq!(to_vec::<i64>(&tensor), [1, 3, 2, 4]);
        assert_eq!(to_vec::<f32>(&tensor.narrow(0, 0, 1)), [1.0, 3.0]);
        let after = Read::so_far();
        assert_eq!((after.calls - before.calls, after.bytes - before.bytes), (2, 4 * 8 + 2 * 4));
    }
}
