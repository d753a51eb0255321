use std::collections::VecDeque;

use c2r_base::Seed;
use rand::{Rng, RngCore};
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Tensor};

/// Where an attack's noise comes from: one stream per sample, or a recording of another
/// implementation's draws.
pub struct Draws(Source);

enum Source {
    /// One generator per sample of the batch, kept over the steps.
    Streams(Vec<Box<dyn RngCore>>),
    Recorded(VecDeque<Tensor>),
}

impl Draws {
    /// One stream per sample id; `purpose` names the attack and what the noise is for.
    pub fn streams(seed: Seed, purpose: &str, ids: &[u64]) -> Self {
        Self(Source::Streams(ids.iter().map(|&id| Box::new(seed.stream(purpose, id)) as Box<dyn RngCore>).collect()))
    }

    /// Answers the n-th request with the n-th tensor, whatever kind of noise is asked for. For
    /// conformance tests against recorded runs; every request must be for all samples.
    pub fn recorded(draws: impl IntoIterator<Item = Tensor>) -> Self {
        Self(Source::Recorded(draws.into_iter().collect()))
    }

    /// f32 `[rows.len(), shape..]`, uniform in `[-1, 1)`; row r from the stream of sample `rows[r]`.
    pub(crate) fn uniform(&mut self, rows: &[usize], shape: &[i64], device: Device) -> Tensor {
        self.fill(rows, shape, device, |rng| 2.0 * rng.random::<f32>() - 1.0)
    }

    /// f32 `[rows.len(), shape..]`, standard normal.
    pub(crate) fn normal(&mut self, rows: &[usize], shape: &[i64], device: Device) -> Tensor {
        self.fill(rows, shape, device, |rng| StandardNormal.sample(rng))
    }

    fn fill(
        &mut self,
        rows: &[usize],
        shape: &[i64],
        device: Device,
        mut draw: impl FnMut(&mut dyn RngCore) -> f32,
    ) -> Tensor {
        let mut size = vec![rows.len() as i64];
        size.extend_from_slice(shape);
        match &mut self.0 {
            Source::Recorded(queue) => {
                let next = queue.pop_front().expect("the recording has a draw for every request");
                assert_eq!(next.size(), size, "the recording has another shape than the request");
                next.to_device(device)
            }
            Source::Streams(streams) => {
                let per_row = shape.iter().product::<i64>() as usize;
                let mut values = Vec::with_capacity(per_row * rows.len());
                for &row in rows {
                    let stream = streams[row].as_mut();
                    values.extend((0..per_row).map(|_| draw(&mut *stream)));
                }
                Tensor::from_slice(&values).view(size.as_slice()).to_device(device)
            }
        }
    }
}
