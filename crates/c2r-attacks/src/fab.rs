//! FAB: walks along the decision boundary towards the clean image.

use c2r_base::{Classifier, Norm, Seed, ThreatModel};
use tch::{Kind, Tensor};

use crate::{
    apgd::likely_targets,
    attack::{
        ALL_NORMS, Attack, AttackBatch, AttackError, Family, Oracle, Perturbed, check_norms, index, per_image,
        positions, reached, row_budget,
    },
    config::{ConfigError, FabTConfig},
    draws::Draws,
    jacobian::nearest_boundary,
};

/// Random restarts begin at this share of the smaller of epsilon and the best distance. Their code.
const START_SHARE: f64 = 0.5;

/// FAB and FAB-T.
pub(crate) struct Fab {
    name: &'static str,
    config: FabTConfig,
    targets: Option<u32>,
}

impl Fab {
    pub(crate) fn new(name: &'static str, config: FabTConfig, targets: Option<u32>) -> Self {
        Self { name, config, targets }
    }
}

impl Attack for Fab {
    fn name(&self) -> &str {
        self.name
    }

    fn family(&self) -> Family {
        Family::MinimumNorm
    }

    fn check(&self, threat: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        check_norms(self.name, &ALL_NORMS, threat)
    }

    fn perturb(
        &self,
        model: &dyn Classifier,
        batch: &AttackBatch<'_>,
        threat: &ThreatModel,
        seed: Seed,
    ) -> Result<Perturbed, AttackError> {
        let _no_grad = tch::no_grad_guard();
        let mut oracle = Oracle::new(model, self.name, batch.ids);
        let n = batch.ids.len();
        let aims = match (batch.targets, self.targets) {
            (Some(targets), _) => Some(targets.unsqueeze(1)),
            (None, Some(targets)) => Some(likely_targets(&mut oracle, batch, targets)?),
            (None, None) => None,
        };
        let n_aims = aims.as_ref().map_or(1, |aims| aims.size()[1] as usize);
        let per_pass = (row_budget(batch.images) / n_aims).max(1);
        let mut found = batch.images.copy();
        let mut distances = Tensor::full([n as i64], f64::INFINITY, (Kind::Float, batch.images.device()));
        let mut open: Vec<usize> = (0..n).collect();
        for restart in 0..self.config.restarts {
            let seed = if restart == 0 { seed } else { seed.child("restart", u64::from(restart)) };
            let mut draws = Draws::streams(seed, &format!("{}/start", self.name), batch.ids);
            for part in open.chunks(per_pass) {
                let rows: Vec<usize> = part.iter().flat_map(|&sample| std::iter::repeat_n(sample, n_aims)).collect();
                let at = index(&rows, batch.images);
                let problem = Problem {
                    clean: batch.images.index_select(0, &at),
                    labels: batch.labels.index_select(0, &at),
                    targets: batch.targets.map(|targets| targets.index_select(0, &at)),
                    aims: aims.as_ref().map(|aims| aims.index_select(0, &index(part, aims)).flatten(0, 1)),
                    rows,
                };
                let start = if restart == 0 {
                    problem.clean.copy()
                } else {
                    let known = distances.index_select(0, &at);
                    random_start(&mut draws, &problem, threat, &known)
                };
                let end = walk(&mut oracle, problem, threat, &self.config, start)?;
                // The nearest of a sample's rows.
                let shape = [part.len() as i64, n_aims as i64];
                let (nearest, which) = end.distances.view(shape).min_dim(1, false);
                let pick = which + Tensor::arange(shape[0], (Kind::Int64, found.device())) * shape[1];
                let here = index(part, &found);
                let better = nearest.lt_tensor(&distances.index_select(0, &here));
                let images = end.images.index_select(0, &pick);
                let images = images.where_self(&per_image(&better), &found.index_select(0, &here));
                let nearest = nearest.minimum(&distances.index_select(0, &here));
                let _ = found.index_copy_(0, &here, &images);
                let _ = distances.index_copy_(0, &here, &nearest);
            }
            if !self.config.minimize {
                let inside = positions(&within(&distances, threat).logical_not());
                open.retain(|row| inside.contains(row));
                if open.is_empty() {
                    break;
                }
            }
        }
        Ok(oracle.finish(found))
    }
}

/// Distances within epsilon, but for float rounding.
fn within(distances: &Tensor, threat: &ThreatModel) -> Tensor {
    distances.le(threat.epsilon.value())
}

/// A random point around the clean image, half as far as what is known or allowed.
fn random_start(draws: &mut Draws, problem: &Problem, threat: &ThreatModel, known: &Tensor) -> Tensor {
    let shape = &problem.clean.size()[1..];
    let device = problem.clean.device();
    let noise = match threat.norm {
        Norm::Linf => draws.uniform(&problem.rows, shape, device),
        Norm::L2 | Norm::L1 => draws.normal(&problem.rows, shape, device),
    };
    let length = per_image(&threat.norm.length(&noise)).clamp_min(1e-12);
    let radius = per_image(&known.clamp_max(threat.epsilon.value()));
    (&problem.clean + noise / length * radius * START_SHARE).clamp(0.0, 1.0)
}

/// What a run of [`walk`] works on, one entry per row; rows of one sample are adjacent.
pub(crate) struct Problem {
    pub(crate) rows: Vec<usize>,
    pub(crate) clean: Tensor,
    pub(crate) labels: Tensor,
    pub(crate) targets: Option<Tensor>,
    /// The class each row walks towards; `None` for the nearest.
    pub(crate) aims: Option<Tensor>,
}

/// What [`walk`] found: f32 `[rows, C, H, W]` and f32 `[rows]`, infinite where nothing was.
pub(crate) struct Nearest {
    pub(crate) images: Tensor,
    pub(crate) distances: Tensor,
}

/// Runs FAB from `start`. Unless the configuration minimizes, a sample leaves with all its rows when one
/// of them is within epsilon: it is broken then.
pub(crate) fn walk(
    oracle: &mut Oracle<'_>,
    problem: Problem,
    threat: &ThreatModel,
    config: &FabTConfig,
    start: Tensor,
) -> Result<Nearest, AttackError> {
    let norm = threat.norm;
    let n_rows = problem.rows.len();
    let mut result = Nearest {
        images: problem.clean.copy(),
        distances: Tensor::full([n_rows as i64], f64::INFINITY, (Kind::Float, start.device())),
    };
    let Problem { mut rows, mut clean, mut labels, mut targets, mut aims } = problem;
    let mut slot: Vec<usize> = (0..n_rows).collect();
    let mut x = start;
    let mut best = clean.copy();
    let mut best_distance = result.distances.copy();

    for _ in 0..config.steps {
        let (difference, direction) = match &aims {
            Some(aims) => {
                let (labels, aims) = (labels.unsqueeze(1), aims.unsqueeze(1));
                let slope = oracle.slope(&x, &rows, |_, logits| {
                    (logits.gather(1, &aims, false) - logits.gather(1, &labels, false)).squeeze_dim(1)
                })?;
                (slope.losses, slope.gradient)
            }
            None => nearest_boundary(oracle, &x, &rows, &labels, norm)?,
        };
        let w = direction.flatten(1, -1);
        let (here, origin) = (x.flatten(1, -1), clean.flatten(1, -1));
        let b = (&w * &here).sum_dim_intlist([1i64].as_slice(), false, Kind::Float) - difference;
        let both = project_on_hyperplane(
            norm,
            &Tensor::cat(&[&here, &origin], 0),
            &Tensor::cat(&[&w, &w], 0),
            &Tensor::cat(&[&b, &b], 0),
        )
        .view_as(&Tensor::cat(&[&x, &clean], 0));
        let n = x.size()[0];
        let (from_here, from_origin) = (both.narrow(0, 0, n), both.narrow(0, n, n));
        let lengths = per_image(&norm.length(&both)).clamp_min(1e-8);
        let (near, far) = (lengths.narrow(0, 0, n), lengths.narrow(0, n, n));
        let bias = (&near / (&near + far)).clamp(0.0, config.alpha_max);
        let mixed: Tensor = (&x + from_here * config.eta) * (1.0 - &bias) + (&clean + from_origin * config.eta) * &bias;
        x = mixed.clamp(0.0, 1.0);

        let logits = oracle.logits(&x, &rows)?;
        let hit = reached(&logits, &labels, targets.as_ref());
        let distance = norm.distance(&x, &clean);
        let better = hit.logical_and(&distance.lt_tensor(&best_distance));
        best = x.where_self(&per_image(&better), &best);
        best_distance = distance.where_self(&better, &best_distance);
        x = (&clean + (&x - &clean) * config.beta).where_self(&per_image(&hit), &x);

        if !config.minimize {
            let broken = positions(&within(&best_distance, threat));
            if !broken.is_empty() {
                let done: std::collections::BTreeSet<usize> = broken.iter().map(|&row| rows[row]).collect();
                let (out, left): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(|&row| done.contains(&rows[row]));
                store(&mut result, &slot, &out, &best, &best_distance);
                if left.is_empty() {
                    return Ok(result);
                }
                let keep = index(&left, &x);
                for tensor in [&mut clean, &mut labels, &mut x, &mut best, &mut best_distance]
                    .into_iter()
                    .chain(targets.as_mut())
                    .chain(aims.as_mut())
                {
                    *tensor = tensor.index_select(0, &keep);
                }
                rows = left.iter().map(|&row| rows[row]).collect();
                slot = left.iter().map(|&row| slot[row]).collect();
            }
        }
    }
    store(&mut result, &slot, &(0..rows.len()).collect::<Vec<_>>(), &best, &best_distance);
    Ok(result)
}

fn store(result: &mut Nearest, slot: &[usize], out: &[usize], best: &Tensor, distance: &Tensor) {
    let from = index(out, best);
    let to = index(&out.iter().map(|&row| slot[row]).collect::<Vec<_>>(), best);
    let _ = result.images.index_copy_(0, &to, &best.index_select(0, &from));
    let _ = result.distances.index_copy_(0, &to, &distance.index_select(0, &from));
}

/// Shortest change of each point onto a hyperplane inside the box, in a norm.
///
/// * `points`: f32 `[N, D]` in `[0, 1]`; the hyperplane is `w . z = b` with `w`: f32 `[N, D]`, `b`: f32 `[N]`.
///
/// Returns f32 `[N, D]`, to add to the points. Where the hyperplane misses the box, the change to the
/// corner of the box that is nearest to it. Croce & Hein 2020 (arXiv:1907.02044), section 3.1.
///
/// On the way to the hyperplane the value i can only move against `sign(w_i)`, by at most its room
/// `u_i`, and brings `|w_i|` per unit. The best moves are `min(t, u_i)` (Linf), `min(t |w_i|, u_i)` (L2) for
/// the multiplier t at which they add up, and whole rooms in the order of `|w_i|` (L1).
pub fn project_on_hyperplane(norm: Norm, points: &Tensor, w: &Tensor, b: &Tensor) -> Tensor {
    let gap = (w * points).sum_dim_intlist([1i64].as_slice(), true, Kind::Float) - b.unsqueeze(1);
    let sign = (w * gap.sign()).sign();
    let weight = w.abs();
    let headroom: Tensor = 1.0 - points;
    let room = headroom.where_self(&sign.lt(0.0), points);
    let needed = gap.abs();
    let gain = &weight * &room;
    let moves = match norm {
        Norm::L1 => {
            let (_, order) = weight.sort(1, true);
            let gain = gain.gather(1, &order, false).to_kind(Kind::Double);
            let before = gain.cumsum(1, Kind::Double) - &gain;
            let left = (needed - before).clamp_min(0.0);
            let sorted_weight = weight.gather(1, &order, false).to_kind(Kind::Double);
            let taken = (left / sorted_weight.clamp_min(1e-30)).to_kind(Kind::Float);
            let taken = taken.minimum(&room.gather(1, &order, false));
            room.zeros_like().scatter(1, &order, &taken)
        }
        Norm::Linf => multiplier(&gain, &weight, &needed).minimum(&room),
        Norm::L2 => (&weight * multiplier(&gain, &weight.square(), &needed)).minimum(&room),
    };
    -(sign * moves)
}

/// The t of each row at which the gains `min(t rate_i, gain_i)` add up to what is needed: f32 `[N, 1]`, the
/// largest f32 where they never do.
///
/// Newton's method on a piecewise linear, concave, increasing function: from below it never overshoots, and it has
/// arrived as soon as the set of rooms that are full stays the same, after a handful of steps. The same result
/// from sorted rooms costs several times as much.
fn multiplier(gain: &Tensor, rate: &Tensor, needed: &Tensor) -> Tensor {
    let zero = gain.zeros_like();
    let sum = |values: Tensor| values.sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    // As if no room were ever full: not too far.
    let mut t = (needed / sum(rate.shallow_clone())).nan_to_num(0.0, f64::from(f32::MAX), 0.0);
    for _ in 0..gain.size()[1] {
        let open = (&t * rate).lt_tensor(gain);
        let slope = sum(rate.where_self(&open, &zero));
        let full = sum(zero.where_self(&open, gain));
        let next = ((needed - full) / &slope).clamp_min(0.0);
        let next = next.masked_fill(&slope.le(0.0), f64::from(f32::MAX)).clamp_max(f64::from(f32::MAX));
        // Rounding may not send it back.
        let next = next.maximum(&t);
        let arrived = next.eq_tensor(&t).all().int64_value(&[]) != 0;
        t = next;
        if arrived {
            break;
        }
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projection_reaches_the_plane_and_stays_in_the_box() {
        let points = Tensor::from_slice(&[0.2f32, 0.9, 0.5]).view([1, 3]);
        let w = Tensor::from_slice(&[1.0f32, -2.0, 0.5]).view([1, 3]);
        let b = Tensor::from_slice(&[-1.75f32]);
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let moved = &points + project_on_hyperplane(norm, &points, &w, &b);
            let gap = (&w * &moved).sum(Kind::Float).double_value(&[]) + 1.75;
            assert!(gap.abs() < 1e-6, "{norm}: {gap}");
            assert!(moved.min().double_value(&[]) >= -1e-7 && moved.max().double_value(&[]) <= 1.0 + 1e-7);
        }
    }

    #[test]
    fn zero_normal_does_not_move() {
        let points = Tensor::from_slice(&[0.2f32, 0.9]).view([1, 2]);
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            let moved = project_on_hyperplane(norm, &points, &points.zeros_like(), &Tensor::from_slice(&[0.3f32]));
            assert_eq!(moved.abs().max().double_value(&[]), 0.0, "{norm}");
        }
    }
}
