use tch::{Device, Tensor};

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
