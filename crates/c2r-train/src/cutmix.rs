use c2r_base::host::send;
use rand::{Rng, seq::SliceRandom};
use tch::{Kind, Tensor};

/// One step's mixing of a batch: a rectangle of each image is that of another one (Yun et al. 2019, arXiv:1905.04899,
/// section 3.1, with Beta(1, 1)), the same place and the same order for the whole batch as in its authors' code.
#[derive(Debug)]
pub(crate) struct CutMix {
    /// i64 `[N]`: whose rectangle each image gets.
    others: Tensor,
    /// Start and length, in rows and in columns.
    rows: (i64, i64),
    columns: (i64, i64),
    /// Part of the area that is another image's.
    share: f64,
}

impl CutMix {
    /// A draw for f32 `[N, C, H, W]`, in a `part` of all steps; nothing is drawn from `rng` if it is 0.
    pub(crate) fn draw(part: f64, images: &Tensor, rng: &mut impl Rng) -> Option<Self> {
        if part == 0.0 || !rng.random_bool(part) {
            return None;
        }
        let (n, _, height, width) = images.size4().expect("images are [N, C, H, W]");
        let side = (1.0 - rng.random::<f64>()).sqrt();
        let mut span = |length: i64| {
            let (half, centre) = ((side * length as f64 / 2.0) as i64, rng.random_range(0..length));
            let (start, end) = ((centre - half).max(0), (centre + half).min(length));
            (start, end - start)
        };
        let (rows, columns) = (span(height), span(width));
        let mut others: Vec<i64> = (0..n).collect();
        others.shuffle(rng);
        let share = (rows.1 * columns.1) as f64 / (height * width) as f64;
        Some(Self { others: send(&Tensor::from_slice(&others), images.device()), rows, columns, share })
    }

    /// The mixed images.
    pub(crate) fn images(&self, images: &Tensor) -> Tensor {
        let place =
            |images: &Tensor| images.narrow(2, self.rows.0, self.rows.1).narrow(3, self.columns.0, self.columns.1);
        let mixed = images.copy();
        place(&mixed).copy_(&place(&images.index_select(0, &self.others)));
        mixed
    }

    /// The labels of the mixed images, f32 `[N, K]` as those of the whole ones.
    pub(crate) fn distributions(&self, distributions: &Tensor) -> Tensor {
        let others = distributions.index_select(0, &self.others);
        (distributions * (1.0 - self.share) + others * self.share).to_kind(Kind::Float)
    }
}

#[cfg(test)]
mod tests {
    use c2r_base::Seed;
    use c2r_testkit::{assert_close, toys};
    use tch::Device;

    use super::*;

    /// Image i is i everywhere, so that each pixel says whose it is.
    #[test]
    fn labels_are_mixed_by_the_area_that_the_pixels_have() {
        let n = 8;
        let images = Tensor::arange(n, (Kind::Float, Device::Cpu)).view([n, 1, 1, 1]).expand([n, 2, 6, 10], false);
        let labels = Tensor::arange(n, (Kind::Int64, Device::Cpu)).one_hot(n).to_kind(Kind::Float);
        let mut shares = Vec::new();
        for step in 0..60 {
            let mix = CutMix::draw(1.0, &images, &mut Seed::new(0).stream("cutmix", step)).unwrap();
            let mixed = mix.images(&images);
            // The part of the first channel's pixels that come from each image.
            let counted = mixed.select(1, 0).flatten(1, 2).to_kind(Kind::Int64).one_hot(n).to_kind(Kind::Float);
            let counted = counted.mean_dim([1i64].as_slice(), false, Kind::Float);
            assert_close(&format!("step {step}"), &mix.distributions(&labels), &counted, 1e-6);
            shares.push(mix.share);
        }
        // Beta(1, 1) without clipping would have a mean of 1/2; at the border rectangles lose a part.
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        assert!((0.2..0.5).contains(&mean) && shares.iter().all(|share| (0.0..=1.0).contains(share)), "{shares:?}");
    }

    #[test]
    fn only_in_its_part_of_the_steps() {
        let images = toys::images(2, [1, 4, 4]);
        let drawn = |part| {
            (0..200)
                .filter(|&step| CutMix::draw(part, &images, &mut Seed::new(1).stream("cutmix", step)).is_some())
                .count()
        };
        assert_eq!((drawn(0.0), drawn(1.0)), (0, 200));
        assert!((70..130).contains(&drawn(0.5)), "{}", drawn(0.5));
    }
}
