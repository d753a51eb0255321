use c2r_base::host::send;
use tch::{Device, Tensor};

/// Floats that are sent together, unless one step takes more: 64 MiB.
const MOST_FLOATS: usize = 1 << 24;

/// Numbers that each step of a loop draws on the host: those of many steps are drawn and sent to the device together.
#[derive(Debug, Default)]
pub struct Ahead {
    /// The first step, and f32 `[steps, ...]`.
    block: Option<(u64, Tensor)>,
}

impl Ahead {
    /// Steps whose numbers are drawn and sent together, at most.
    pub const MOST_STEPS: u64 = 64;

    /// What `draw` gives for `step`, f32 of `shape` on `device`.
    ///
    /// * `end`: the loop has no step from there on.
    /// * `draw`: follows from the step alone, and is asked for later ones, too; as many numbers as `shape` has.
    pub fn of(&mut self, step: u64, end: u64, shape: &[i64], device: Device, draw: impl Fn(u64) -> Vec<f32>) -> Tensor {
        if let Some((first, block)) = &self.block
            && (*first..*first + block.size()[0] as u64).contains(&step)
        {
            return block.get((step - first) as i64);
        }
        let length = shape.iter().product::<i64>() as usize;
        let most = (MOST_FLOATS / length.max(1)) as u64;
        let n = most.min(Self::MOST_STEPS).min(end.saturating_sub(step)).max(1);
        // Whole steps are copied: this crate is not optimized, so a loop over the numbers would take longer than drawing them.
        let mut values = Vec::with_capacity(length * n as usize);
        (step..step + n).for_each(|step| values.extend_from_slice(&draw(step)));
        let block = send(&Tensor::from_slice(&values).view([&[n as i64], shape].concat().as_slice()), device);
        let now = block.get(0);
        self.block = Some((step, block));
        now
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn every_step_gets_its_own_numbers_however_they_are_sent() {
        let drawn = RefCell::new(Vec::new());
        let mut ahead = Ahead::default();
        let mut of = |step: u64| {
            let numbers = ahead.of(step, 70, &[2, 1], Device::Cpu, |step| {
                drawn.borrow_mut().push(step);
                vec![step as f32, -(step as f32)]
            });
            Vec::<f32>::try_from(numbers.view(-1)).unwrap()
        };
        for step in [0, 1, 5, 63, 64, 69, 70, 3] {
            assert_eq!(of(step), [step as f32, -(step as f32)]);
        }
        // Blocks from 0, from 64 to the end, of a step after the end alone, and from 3 again.
        let expected: Vec<u64> = (0..64).chain(64..70).chain([70]).chain(3..67).collect();
        assert_eq!(*drawn.borrow(), expected);
        // Steps that take much are sent one by one.
        let large = [1 << 12, 1 << 11];
        let mut ahead = Ahead::default();
        for step in 0..3 {
            let numbers = ahead.of(step, 9, &large, Device::Cpu, |step| vec![step as f32; 1 << 23]);
            assert_eq!(numbers.double_value(&[4095, 2047]), step as f64);
        }
        assert_eq!(ahead.block.unwrap().1.size()[0], 2);
    }
}
