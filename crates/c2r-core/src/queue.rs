//! The memory queue of the contrastive robustness loss: per class, the last embeddings seen.

use c2r_base::{Seed, host::send};
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Shape and pace of a [`MemoryQueue`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct QueueConfig {
    /// Embeddings kept per class (the paper's Q), at least 1.
    pub per_class: usize,
    /// Negatives retrieved per anchor (the paper's k), at least 1.
    pub top_k: usize,
    /// Dimensions of the fixed random projection that shortlists them (the paper's r); 0 compares
    /// the full embeddings.
    pub projection: usize,
    /// Moving average `m` in `[0, 1)`: a stored row becomes `m * (class mean of the stored rows) +
    /// (1 - m) * new embedding`; 0 stores embeddings as they are.
    pub momentum: f64,
}

/// Per class a first-in-first-out ring of embeddings, all on one device, without gradients.
///
/// Every class holds the same number of rows at most, however unbalanced the batches are
/// (class-balanced). Memory is `K * per_class * D` floats; retrieving costs one product of the
/// projected anchors with the projected queue.
#[derive(Debug)]
pub struct MemoryQueue {
    config: QueueConfig,
    /// f32 `[K * per_class, D]`, rows of class c at `c * per_class..`.
    rows: Tensor,
    /// Projected and normalized rows, f32 `[K * per_class, r]`.
    projected: Tensor,
    /// f32 `[D, r]`, or undefined where `config.projection` is 0.
    projection: Option<Tensor>,
    /// Rows ever pushed, per class.
    pushed: Vec<u64>,
    /// Class of each row, i64 `[K * per_class]`.
    owner: Tensor,
    /// 0 where a row is stored, minus infinity elsewhere, f32 `[K * per_class]`.
    stored: Tensor,
    /// Where the last batch went: slots and the rows of the batch, on the host and as i64 `[2, N]`. Batches are often alike.
    places: Option<([Vec<i64>; 2], Tensor)>,
}

impl MemoryQueue {
    /// An empty queue for `n_classes` classes of embeddings of length `dimension`.
    ///
    /// The projection is Gaussian and drawn once from `seed`.
    ///
    /// # Panics
    /// If a size in `config` is 0 (apart from `projection`).
    pub fn new(config: QueueConfig, n_classes: usize, dimension: i64, seed: Seed, device: Device) -> Self {
        assert!(config.per_class > 0 && config.top_k > 0, "queue sizes are checked by the configuration");
        let capacity = (n_classes * config.per_class) as i64;
        let projection = (config.projection > 0).then(|| {
            let mut rng = seed.stream("queue/projection", 0);
            let values: Vec<f32> = (0..dimension as usize * config.projection)
                .map(|_| {
                    let value: f64 = StandardNormal.sample(&mut rng);
                    (value / (config.projection as f64).sqrt()) as f32
                })
                .collect();
            Tensor::from_slice(&values).view([dimension, config.projection as i64]).to_device(device)
        });
        let reduced = projection.as_ref().map_or(dimension, |_| config.projection as i64);
        let owner: Vec<i64> = (0..capacity).map(|row| row / config.per_class as i64).collect();
        Self {
            owner: send(&Tensor::from_slice(&owner), device),
            stored: Tensor::full([capacity], f64::NEG_INFINITY, (Kind::Float, device)),
            places: None,
            rows: Tensor::zeros([capacity, dimension], (Kind::Float, device)),
            projected: Tensor::zeros([capacity, reduced], (Kind::Float, device)),
            projection,
            pushed: vec![0; n_classes],
            config,
        }
    }

    /// Number of stored rows of each class.
    pub fn filled(&self) -> Vec<usize> {
        self.pushed.iter().map(|&pushed| (pushed as usize).min(self.config.per_class)).collect()
    }

    /// Number of stored rows.
    pub fn len(&self) -> usize {
        self.filled().iter().sum()
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.pushed.iter().all(|&pushed| pushed == 0)
    }

    /// Stores embeddings, oldest out first, in the order of the batch.
    ///
    /// * `embeddings`: f32 `[M, D]`, detached here; `labels`: their classes.
    ///
    /// # Panics
    /// If `embeddings` have another form than `[M, D]`, or `labels` another length or a class that the queue does not have; nothing
    /// is stored then.
    pub fn push(&mut self, embeddings: &Tensor, labels: &[i64]) {
        let _no_grad = tch::no_grad_guard();
        let expected = (Kind::Float, vec![labels.len() as i64, self.rows.size()[1]]);
        assert_eq!((embeddings.kind(), embeddings.size()), expected, "embeddings, one for each label");
        let n_classes = self.pushed.len();
        let stray = labels.iter().find(|label| !(0..n_classes as i64).contains(*label));
        assert_eq!(stray, None, "a label is none of the queue's {n_classes} classes");
        let mut embeddings = embeddings.detach().to_device(self.rows.device());
        if self.config.momentum > 0.0 {
            embeddings = self.averaged(&embeddings, labels);
        }
        // A batch may bring more rows of a class than fit: the last ones win, as in a queue.
        let mut target = std::collections::BTreeMap::new();
        for (row, &label) in labels.iter().enumerate() {
            let class = label as usize;
            let slot = class * self.config.per_class + (self.pushed[class] % self.config.per_class as u64) as usize;
            self.pushed[class] += 1;
            target.insert(slot as i64, row as i64);
        }
        let places: [Vec<i64>; 2] = target.into_iter().unzip().into();
        let sent = match self.places.take().filter(|(known, _)| *known == places) {
            Some((_, sent)) => sent,
            None => send(&Tensor::from_slice(&places.concat()).view([2, -1]), self.rows.device()),
        };
        let (slots, source) = (sent.get(0), sent.get(1));
        self.places = Some((places, sent));
        let fresh = embeddings.index_select(0, &source);
        let _ = self.rows.index_copy_(0, &slots, &fresh);
        let _ = self.projected.index_copy_(0, &slots, &self.project(&fresh));
        let _ = self.stored.index_fill_(0, &slots, 0.0);
    }

    /// Pulls each embedding to the mean of what its class has stored.
    fn averaged(&self, embeddings: &Tensor, labels: &[i64]) -> Tensor {
        let filled = self.filled();
        let mut means = std::collections::BTreeMap::new();
        let rows: Vec<Tensor> = labels
            .iter()
            .enumerate()
            .map(|(row, &label)| {
                let (class, own) = (label as usize, embeddings.get(row as i64));
                if filled[class] == 0 {
                    return own;
                }
                let mean = means.entry(class).or_insert_with(|| {
                    let stored = self.rows.narrow(0, (class * self.config.per_class) as i64, filled[class] as i64);
                    stored.mean_dim([0i64].as_slice(), false, Kind::Float) * self.config.momentum
                });
                &*mean + own * (1.0 - self.config.momentum)
            })
            .collect();
        Tensor::stack(&rows, 0)
    }

    fn project(&self, embeddings: &Tensor) -> Tensor {
        let reduced = match &self.projection {
            Some(projection) => embeddings.matmul(projection),
            None => embeddings.shallow_clone(),
        };
        normalize_rows(&reduced)
    }

    /// For each anchor the stored rows of other classes that look most like it after projection.
    ///
    /// * `anchors`: f32 `[M, D]`; `labels`: i64 `[M]`.
    ///
    /// Returns full embeddings scaled to length 1, f32 `[M, k, D]`, and a mask f32 `[M, k]` (1 where a row was
    /// found: fewer than k may be stored), both without gradients; `None` while nothing is stored. `k` is
    /// `min(top_k, capacity)`.
    pub fn nearest_impostors(&self, anchors: &Tensor, labels: &Tensor) -> Option<(Tensor, Tensor)> {
        if self.is_empty() {
            return None;
        }
        let _no_grad = tch::no_grad_guard();
        let capacity = self.rows.size()[0];
        let similarity = self.project(&anchors.detach()).matmul(&self.projected.transpose(0, 1)) + &self.stored;
        let same = labels.unsqueeze(1).eq_tensor(&self.owner);
        let similarity = similarity.masked_fill(&same, f64::NEG_INFINITY);
        let k = (self.config.top_k as i64).min(capacity);
        let (best, index) = similarity.topk(k, 1, true, true);
        let found = best.isfinite().to_kind(Kind::Float);
        // Scaled before they are gathered: a stored row is the neighbour of many anchors.
        let unit = normalize_rows(&self.rows);
        let rows = unit.index_select(0, &index.flatten(0, -1)).view([labels.size()[0], k, -1]);
        Some((rows, found))
    }

    /// What must be saved to continue: the rows, f32 `[K * per_class, D]`, the same projected, f32
    /// `[K * per_class, r]`, and pushes per class, i64 `[K]`.
    ///
    /// Rows are projected as they come, a batch at a time, and a product's rounding may depend on its shape: projecting
    /// them all at once could retrieve other negatives.
    pub fn state(&self) -> (Tensor, Tensor, Tensor) {
        let pushed: Vec<i64> = self.pushed.iter().map(|&pushed| pushed as i64).collect();
        (self.rows.copy(), self.projected.copy(), Tensor::from_slice(&pushed))
    }

    /// Continues from [`MemoryQueue::state`].
    ///
    /// # Errors
    /// A message that names dtypes and shapes, if they are not this queue's, or a number of pushes that is none.
    pub fn load_state(&mut self, rows: &Tensor, projected: &Tensor, pushed: &Tensor) -> Result<(), String> {
        let n_classes = self.pushed.len() as i64;
        let is = |tensor: &Tensor| (tensor.kind(), tensor.size());
        let fits = (is(rows), is(projected)) == (is(&self.rows), is(&self.projected))
            && is(pushed) == (Kind::Int64, vec![n_classes]);
        if !fits {
            return Err(format!(
                "queue state has rows {:?}, projected {:?} and counts {:?}, expected {:?}, {:?} and Int64 [{n_classes}]",
                is(rows),
                is(projected),
                is(pushed),
                is(&self.rows),
                is(&self.projected),
            ));
        }
        let counts = Vec::<i64>::try_from(pushed).map_err(|error| error.to_string())?;
        self.pushed = counts
            .iter()
            .map(|&n| u64::try_from(n).map_err(|_| format!("queue state counts {n} pushes")))
            .collect::<Result<_, _>>()?;
        self.rows = rows.to_device(self.rows.device()).copy();
        self.projected = projected.to_device(self.projected.device()).copy();
        let _ = self.stored.fill_(f64::NEG_INFINITY);
        for (class, filled) in self.filled().into_iter().enumerate() {
            let of_class = self.stored.narrow(0, (class * self.config.per_class) as i64, self.config.per_class as i64);
            let _ = of_class.narrow(0, 0, filled as i64).fill_(0.0);
        }
        Ok(())
    }
}

/// Rows scaled to length 1 along the last dimension; a zero row stays zero.
pub(crate) fn normalize_rows(rows: &Tensor) -> Tensor {
    rows / rows.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float).clamp_min(1e-24).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stored rows of one class, oldest first, f32 `[filled, D]`.
    fn class_rows(queue: &MemoryQueue, class: usize) -> Tensor {
        let (per_class, pushed) = (queue.config.per_class as u64, queue.pushed[class]);
        let oldest = pushed.saturating_sub(per_class);
        let slots: Vec<i64> = (oldest..pushed).map(|at| (class as u64 * per_class + at % per_class) as i64).collect();
        queue.rows.index_select(0, &Tensor::from_slice(&slots))
    }

    fn config(per_class: usize, top_k: usize) -> QueueConfig {
        QueueConfig { per_class, top_k, projection: 0, momentum: 0.0 }
    }

    fn queue(config: QueueConfig) -> MemoryQueue {
        MemoryQueue::new(config, 3, 2, Seed::new(5), Device::Cpu)
    }

    fn rows(values: &[[f32; 2]]) -> Tensor {
        Tensor::from_slice(values.as_flattened()).view([values.len() as i64, 2])
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn each_class_keeps_its_last_rows_in_order() {
        let mut queue = queue(config(2, 1));
        queue.push(&rows(&[[1.0, 0.0], [2.0, 0.0], [9.0, 9.0]]), &[0, 0, 2]);
        assert_eq!(queue.filled(), [2, 0, 1]);
        queue.push(&rows(&[[3.0, 0.0]]), &[0]);
        assert_eq!(flat(&class_rows(&queue, 0)), [2.0, 0.0, 3.0, 0.0]);
        assert_eq!(flat(&class_rows(&queue, 2)), [9.0, 9.0]);
        // More rows than fit, in one batch: the last two stay.
        queue.push(&rows(&[[4.0, 0.0], [5.0, 0.0], [6.0, 0.0]]), &[0, 0, 0]);
        assert_eq!(flat(&class_rows(&queue, 0)), [5.0, 0.0, 6.0, 0.0]);
        assert_eq!(queue.filled(), [2, 0, 1]);
    }

    #[test]
    fn a_label_of_no_class_stores_nothing() {
        for label in [-1, 3] {
            let mut queue = queue(config(2, 1));
            let push = || queue.push(&rows(&[[1.0, 0.0], [2.0, 0.0]]), &[0, label]);
            let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(push)).unwrap_err();
            let text = panic.downcast_ref::<String>().unwrap();
            assert!(
                text.contains("a label is none of the queue's 3 classes") && text.contains(&label.to_string()),
                "{text}"
            );
            assert!(queue.is_empty());
        }
    }

    #[test]
    fn embeddings_of_another_form_are_refused_before_anything_is_stored() {
        for wrong in [
            Tensor::zeros([1, 3], (Kind::Float, Device::Cpu)),
            rows(&[[0.0, 1.0]]).to_kind(Kind::Double),
            rows(&[[0.0, 1.0]; 2]),
        ] {
            let mut queue = queue(config(2, 1));
            let pushed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| queue.push(&wrong, &[1])));
            let panic = pushed.unwrap_err();
            let text = panic.downcast_ref::<String>().map_or("", |text| text);
            assert!(text.contains("embeddings, one for each label"), "{text}");
            assert!(queue.is_empty());
        }
    }

    #[test]
    fn a_flood_of_one_class_does_not_push_out_another() {
        let mut queue = queue(config(2, 1));
        queue.push(&rows(&[[0.0, 1.0]]), &[1]);
        for step in 0..50 {
            queue.push(&rows(&[[step as f32, 0.0]]), &[0]);
        }
        assert_eq!(queue.filled(), [2, 1, 0]);
        assert_eq!(flat(&class_rows(&queue, 1)), [0.0, 1.0]);
    }

    #[test]
    fn impostors_are_the_most_similar_rows_of_other_classes() {
        let mut queue = queue(config(2, 2));
        // Cosines with the anchor: 1, 0.6, 0.8 and -1. The second is the longest.
        queue.push(&rows(&[[1.0, 0.0], [12.0, 16.0], [4.0, 3.0], [-1.0, 0.0]]), &[0, 1, 2, 2]);
        let (found, mask) = queue.nearest_impostors(&rows(&[[2.0, 0.0]]), &Tensor::from_slice(&[0i64])).unwrap();
        // The identical direction (class 0) is no impostor.
        assert_eq!(flat(&found), [0.8, 0.6, 0.6, 0.8]);
        assert_eq!(flat(&mask), [1.0, 1.0]);
    }

    #[test]
    fn missing_impostors_are_masked() {
        let mut queue = queue(config(2, 3));
        assert!(queue.nearest_impostors(&rows(&[[1.0, 0.0]]), &Tensor::from_slice(&[0i64])).is_none());
        queue.push(&rows(&[[0.0, 1.0]]), &[1]);
        let (_, mask) = queue.nearest_impostors(&rows(&[[1.0, 0.0]]), &Tensor::from_slice(&[0i64])).unwrap();
        assert_eq!(flat(&mask), [1.0, 0.0, 0.0]);
        // More are asked for than there is room for.
        let mut small = self::queue(config(1, 9));
        small.push(&rows(&[[0.0, 1.0]]), &[1]);
        let (_, mask) = small.nearest_impostors(&rows(&[[1.0, 0.0]]), &Tensor::from_slice(&[0i64])).unwrap();
        assert_eq!(flat(&mask), [1.0, 0.0, 0.0]);
    }

    #[test]
    fn projection_shortlists_but_full_embeddings_come_back() {
        let config = QueueConfig { per_class: 4, top_k: 1, projection: 8, momentum: 0.0 };
        let mut queue = MemoryQueue::new(config, 2, 2, Seed::new(5), Device::Cpu);
        queue.push(&rows(&[[8.0, 6.0], [-3.0, 0.0]]), &[1, 1]);
        let (found, _) = queue.nearest_impostors(&rows(&[[1.0, 0.0]]), &Tensor::from_slice(&[0i64])).unwrap();
        assert_eq!(flat(&found), [0.8, 0.6]);
        // It keeps which of two is nearer.
        queue.push(&rows(&[[0.0, 5.0], [3.0, -4.0]]), &[0, 0]);
        let (found, _) = queue.nearest_impostors(&rows(&[[4.0, -3.0]]), &Tensor::from_slice(&[1i64])).unwrap();
        assert_eq!(flat(&found), [0.6, -0.8]);
    }

    #[test]
    fn momentum_averages_with_the_stored_class_mean() {
        let mut queue = queue(QueueConfig { momentum: 0.75, ..config(4, 1) });
        queue.push(&rows(&[[4.0, 0.0], [0.0, 4.0]]), &[0, 1]);
        queue.push(&rows(&[[0.0, 8.0], [0.0, 8.0]]), &[0, 1]);
        assert_eq!(flat(&class_rows(&queue, 0)), [4.0, 0.0, 3.0, 2.0]);
        assert_eq!(flat(&class_rows(&queue, 1)), [0.0, 4.0, 0.0, 5.0]);
    }

    #[test]
    fn state_round_trips() {
        let mut old = queue(config(2, 3));
        old.push(&rows(&[[0.0, 1.0], [3.0, 4.0], [2.0, 0.0]]), &[0, 0, 0]);
        let (stored, projected, pushed) = old.state();
        // What was stored before is forgotten.
        let mut new = queue(config(2, 3));
        new.push(&rows(&[[1.0, 1.0]]), &[2]);
        new.load_state(&stored, &projected, &pushed).unwrap();
        assert_eq!(flat(&class_rows(&new, 0)), flat(&class_rows(&old, 0)));
        assert_eq!(new.filled(), old.filled());
        // Each anchor is nearest to a row of its own, (0.6, 0.8) or (1, 0).
        let (anchors, labels) = (rows(&[[1.0, 1.0], [1.0, 0.0]]), Tensor::from_slice(&[1i64, 1]));
        for queue in [&old, &new] {
            let (found, mask) = queue.nearest_impostors(&anchors, &labels).unwrap();
            assert_eq!(flat(&found.select(1, 0)), [0.6, 0.8, 1.0, 0.0]);
            assert_eq!(flat(&mask), [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
        }
        let reason = |stored: &Tensor, projected: &Tensor, pushed: &Tensor| {
            queue(config(2, 1)).load_state(stored, projected, pushed).unwrap_err()
        };
        assert!(reason(&stored.narrow(0, 0, 2), &projected, &pushed).contains("rows (Float, [2, 2])"));
        assert!(reason(&stored.to_kind(Kind::Double), &projected, &pushed).contains("rows (Double, [6, 2])"));
        assert!(reason(&stored, &projected.narrow(1, 0, 1), &pushed).contains("projected (Float, [6, 1])"));
        assert!(reason(&stored, &projected, &(&pushed - 4)).contains("-1 pushes"));
    }
}
