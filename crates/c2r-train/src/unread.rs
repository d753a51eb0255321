use c2r_base::host::to_vec;
use tch::{Kind, Tensor};

/// Numbers that are still on the device, each with what it is of: they are read together, because every reading waits for all
/// that the device has to compute.
#[derive(Debug)]
pub struct Unread<T> {
    of: Vec<T>,
    values: Vec<Tensor>,
}

impl<T> Default for Unread<T> {
    fn default() -> Self {
        Self { of: Vec::new(), values: Vec::new() }
    }
}

impl<T> Unread<T> {
    /// Adds a number: a tensor with one value, on the device of the others.
    pub fn push(&mut self, of: T, value: &Tensor) {
        self.of.push(of);
        self.values.push(value.detach());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Takes all of them, in the order in which they were added.
    pub fn read(&mut self) -> Vec<(T, f64)> {
        let values = read(&std::mem::take(&mut self.values));
        std::mem::take(&mut self.of).into_iter().zip(values).collect()
    }
}

/// The values of all tensors, one tensor after the other, with one transfer.
pub fn read(tensors: &[Tensor]) -> Vec<f64> {
    if tensors.is_empty() {
        return Vec::new();
    }
    let _no_grad = tch::no_grad_guard();
    // One operator for the usual ones, which are losses.
    if tensors.iter().all(|tensor| tensor.dim() == 0 && tensor.kind() == tensors[0].kind()) {
        return to_vec(&Tensor::stack(tensors, 0));
    }
    let flat: Vec<Tensor> = tensors.iter().map(|tensor| tensor.to_kind(Kind::Double).view(-1)).collect();
    to_vec(&Tensor::cat(&flat, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_in_order_and_once() {
        let mut unread = Unread::default();
        assert!(unread.read().is_empty());
        unread.push("a", &Tensor::from(0.5f32));
        unread.push("b", &Tensor::from_slice(&[1i64]));
        unread.push("c", &Tensor::from(1.0 / 3.0));
        assert_eq!(unread.len(), 3);
        assert_eq!(unread.read(), [("a", 0.5), ("b", 1.0), ("c", 1.0 / 3.0)]);
        assert!(unread.is_empty() && unread.read().is_empty());
        assert_eq!(read(&[Tensor::from(0.5f32), Tensor::from(-2f32)]), [0.5, -2.0]);
        assert_eq!(read(&[Tensor::from_slice(&[1f32, 2.0]), Tensor::from(3f64)]), [1.0, 2.0, 3.0]);
    }
}
