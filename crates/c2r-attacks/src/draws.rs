use std::collections::VecDeque;

use c2r_base::{Seed, fill_rows, host::send};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Tensor};

/// Values that are drawn ahead, 16 MiB, unless one request is for more.
const AHEAD_VALUES: usize = 1 << 22;

/// Where an attack's noise comes from: one stream per sample, or a recording of another
/// implementation's draws.
pub struct Draws(Source);

enum Source {
    /// One generator per sample of the batch, kept over the steps.
    Streams {
        streams: Vec<ChaCha8Rng>,
        ahead: Option<Ahead>,
    },
    Recorded(VecDeque<Tensor>),
}

/// What was drawn and moved to the device before it was asked for.
struct Ahead {
    /// f32 `[rows, requests * n, shape..]`.
    values: Tensor,
    /// How many of the second dimension are used.
    used: i64,
}

/// What is asked for, several times in a row.
pub(crate) struct Request<'a> {
    /// Sample of the batch that each row is for, ascending.
    pub(crate) rows: &'a [usize],
    /// Draws per row in each request.
    pub(crate) n: i64,
    /// Shape of a draw.
    pub(crate) shape: &'a [i64],
    /// How many requests of this kind will come in any case, this one among them.
    pub(crate) requests: u32,
    pub(crate) device: Device,
}

impl<'a> Request<'a> {
    /// One draw per row, once.
    pub(crate) const fn once(rows: &'a [usize], shape: &'a [i64], device: Device) -> Self {
        Self { rows, n: 1, shape, requests: 1, device }
    }
}

impl Draws {
    /// One stream per sample id; `purpose` names the attack and what the noise is for.
    pub fn streams(seed: Seed, purpose: &str, ids: &[u64]) -> Self {
        let streams = ids.iter().map(|&id| seed.stream(purpose, id)).collect();
        Self(Source::Streams { streams, ahead: None })
    }

    /// Answers the n-th request with the n-th tensor, whatever kind of noise is asked for. For
    /// conformance tests against recorded runs; every request must be for all samples.
    pub fn recorded(draws: impl IntoIterator<Item = Tensor>) -> Self {
        Self(Source::Recorded(draws.into_iter().collect()))
    }

    /// f32 `[rows, n, shape..]`, uniform in `[-1, 1)`; row r from the stream of sample `rows[r]`.
    pub(crate) fn uniform(&mut self, request: &Request<'_>) -> Tensor {
        self.fill(request, |rng| 2.0 * rng.random::<f32>() - 1.0)
    }

    /// f32 `[rows, n, shape..]`, standard normal.
    pub(crate) fn normal(&mut self, request: &Request<'_>) -> Tensor {
        self.fill(request, |rng| StandardNormal.sample(rng))
    }

    /// The same numbers however many requests are drawn at once: a stream gives those of one after those of the other.
    fn fill(&mut self, request: &Request<'_>, draw: impl Fn(&mut ChaCha8Rng) -> f32 + Sync) -> Tensor {
        let &Request { rows, n, shape, requests, device } = request;
        let (streams, ahead) = match &mut self.0 {
            Source::Recorded(queue) => {
                let next: Vec<Tensor> = (0..n).filter_map(|_| queue.pop_front()).collect();
                let next = Tensor::stack(&next, 1);
                let size = [&[rows.len() as i64, n], shape].concat();
                assert_eq!(next.size(), size, "the recording has another shape than the request");
                return next.to_device(device);
            }
            Source::Streams { streams, ahead } => (streams, ahead),
        };
        if ahead.as_ref().is_none_or(|ahead| ahead.used == ahead.values.size()[1]) {
            let per_request = rows.len() * n as usize * shape.iter().product::<i64>() as usize;
            let now = (AHEAD_VALUES / per_request.max(1)).clamp(1, requests.max(1) as usize);
            let mut values = vec![0.0; per_request * now];
            // Rows of one sample are adjacent: its stream fills them one after the other.
            let mut samples = rows.to_vec();
            samples.dedup();
            debug_assert!(
                now == 1 || samples.len() == rows.len(),
                "requests of several rows per sample are drawn one by one"
            );
            let chosen = streams.iter_mut().enumerate().filter(|(at, _)| samples.binary_search(at).is_ok());
            fill_rows(chosen.map(|(_, stream)| stream), &mut values, |rng, row| row.fill_with(|| draw(rng)));
            let size = [&[rows.len() as i64, n * now as i64], shape].concat();
            let values = send(&Tensor::from_slice(&values).view(size.as_slice()), device);
            *ahead = Some(Ahead { values, used: 0 });
        }
        let ahead = ahead.as_mut().expect("it was just filled");
        let next = ahead.values.narrow(1, ahead.used, n);
        ahead.used += n;
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three requests at once, or one after the other, or those of one sample alone.
    #[test]
    fn numbers_do_not_depend_on_how_many_are_drawn_ahead() {
        let drawn = |ids: &[u64], rows: &[usize], requests: u32| {
            let mut draws = Draws::streams(Seed::new(4), "test", ids);
            let request = Request { rows, n: 2, shape: &[1, 3], requests, device: Device::Cpu };
            let parts: Vec<Tensor> = (0..3).map(|_| draws.normal(&request)).collect();
            assert_eq!(parts[0].size(), [rows.len() as i64, 2, 1, 3]);
            Tensor::cat(&parts, 1)
        };
        let ahead = drawn(&[8, 3, 5], &[0, 2], 3);
        assert_eq!(ahead, drawn(&[8, 3, 5], &[0, 2], 1));
        assert_eq!(ahead.narrow(0, 1, 1), drawn(&[5], &[0], 1));
        // The stream itself.
        let mut stream = Seed::new(4).stream("test", 8);
        let expected: Vec<f32> = (0..18).map(|_| StandardNormal.sample(&mut stream)).collect();
        assert_eq!(Vec::<f32>::try_from(ahead.get(0).flatten(0, -1)).unwrap(), expected);
    }
}
