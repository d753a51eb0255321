//! FAB: walks along the decision boundary towards the clean image.

use c2r_base::{Goal, Norm, Passes, ThreatModel, grad::in_range, host};
use tch::{Kind, Tensor};

use crate::{
    active::{Active, Leaving, Samples},
    aims::{self, Aims},
    attack::{AttackBatch, Family},
    attacks::{
        apgd::{STEPS, TARGETS},
        at_hand::{NEWTON_STEPS, hyperplane_moves},
        deepfool::{nearest_boundary, scaled},
    },
    draws::{Draws, Request},
    error::{AttackError, ConfigError},
    options::{ALL_NORMS, Check, Options, Search, Task, options, passes},
    oracle::Oracle,
    rows::{attempt_seed, index, per_image, write_rows},
};

/// Random restarts begin at this share of the smaller of epsilon and the best distance. Their code.
const START_SHARE: f64 = 0.5;
/// Bias of FAB towards the original point, at most. Croce & Hein 2020 (arXiv:1907.02044), section 4.
const ALPHA_MAX: f64 = 0.1;
/// Extrapolation of FAB beyond the linearized boundary. Croce & Hein 2020 (arXiv:1907.02044), section 4.
const ETA: f64 = 1.05;
/// Backward step of FAB. Croce & Hein 2020 (arXiv:1907.02044), section 4.
const BETA: f64 = 0.9;

/// The options of FAB, and more before the last of them.
macro_rules! fab_options {
    ($(#[$doc:meta])* $name:ident { $($more:tt)* }) => {
        options!(
            $(#[$doc])*
            $name {
                /// Number of steps.
                steps: u32 = STEPS,
                /// Attempts, per target if it has any; the first starts at the clean image, the others at random points.
                restarts: u32 = 1,
                /// Bias towards the original point, at most.
                alpha_max: f64 = ALPHA_MAX,
                /// Extrapolation beyond the linearized boundary.
                eta: f64 = ETA,
                /// Backward step.
                beta: f64 = BETA,
                $($more)*
                /// Go on after a perturbation within epsilon was found, for the smallest one.
                minimize: bool = true,
            }
        );
    };
}

fab_options!(
    /// FAB (Croce & Hein 2020, arXiv:1907.02044).
    FabConfig {}
);
fab_options!(
    /// FAB-T: FAB towards one class at a time (Croce & Hein 2020, arXiv:2003.01690, section 4).
    FabTConfig {
        /// Target classes per sample; at most K - 1 are used.
        targets: u32 = TARGETS,
    }
);

/// FAB and FAB-T.
pub(crate) struct Fab {
    pub(crate) config: FabConfig,
    /// How many likely classes it aims at where the goal names none; `None` for the nearest boundary.
    pub(crate) targets: Option<u32>,
}

impl FabConfig {
    fn attack(&self, check: &Check, targets: Option<u32>) -> Result<Box<dyn Search>, ConfigError> {
        check.count("steps", self.steps)?;
        check.count("restarts", self.restarts)?;
        check.at_least("alpha-max", self.alpha_max, 0.0)?;
        check.at_least("eta", self.eta, 1.0)?;
        check.fraction("beta", self.beta)?;
        Ok(Box::new(Fab { config: self.clone(), targets }))
    }
}

impl Options for FabConfig {
    fn build(&self, name: &'static str) -> Result<Box<dyn Search>, ConfigError> {
        self.attack(&Check(name), None)
    }

    fn passes(&self, threat: &ThreatModel, classes: u64) -> Passes {
        let steps = u64::from(self.steps) * u64::from(self.restarts);
        // Towards a target it needs the gradient of one difference, towards the nearest boundary that of each class.
        let gradients = if threat.goal == Goal::Untargeted { classes } else { 1 };
        passes(2 * steps, gradients * steps)
    }
}

impl FabTConfig {
    /// The options of its runs towards one class.
    const fn run(&self) -> FabConfig {
        let Self { steps, restarts, alpha_max, eta, beta, minimize, .. } = *self;
        FabConfig { steps, restarts, alpha_max, eta, beta, minimize }
    }
}

impl Options for FabTConfig {
    fn build(&self, name: &'static str) -> Result<Box<dyn Search>, ConfigError> {
        let check = Check(name);
        check.count("targets", self.targets)?;
        self.run().attack(&check, Some(self.targets))
    }

    fn passes(&self, threat: &ThreatModel, classes: u64) -> Passes {
        let (n_aims, to_choose) = aims::cost(threat, self.targets, classes);
        let steps = u64::from(self.steps) * u64::from(self.restarts) * n_aims;
        passes(2 * steps + to_choose, steps)
    }
}

impl Search for Fab {
    fn family(&self) -> Family {
        Family::MinimumNorm
    }

    fn check(&self, check: &Check, threat: &ThreatModel, _: i64) -> Result<(), ConfigError> {
        check.norm(&ALL_NORMS, threat)
    }

    fn search(&self, oracle: &mut Oracle<'_>, &Task { batch, threat, seed }: &Task<'_>) -> Result<Tensor, AttackError> {
        let n = batch.ids.len();
        let aims = Aims::new(oracle, batch, self.targets)?;
        let mut found = batch.images.copy();
        let mut distances = Tensor::full([n as i64], f64::INFINITY, (Kind::Float, batch.images.device()));
        let mut open: Vec<usize> = (0..n).collect();
        for restart in 0..self.config.restarts {
            let purpose = format!("{}/start", oracle.attack());
            let mut draws = Draws::streams(attempt_seed(seed, restart), &purpose, batch.ids);
            for part in open.chunks(aims.samples_per_pass(batch.images)) {
                let (rows, row_aims) = aims.rows(part);
                let Samples { clean, .. } = Samples::of(batch, &rows);
                let start = if restart == 0 {
                    clean
                } else {
                    let known = distances.index_select(0, &index(&rows, &distances));
                    random_start(&mut draws, &rows, &clean, threat, &known)
                };
                let end = self.walk(oracle, batch, &rows, row_aims, threat, start)?;
                // The nearest of a sample's rows.
                let shape = [part.len() as i64, aims.count() as i64];
                let (nearest, which) = end.distances.view(shape).min_dim(1, false);
                let pick = which + Tensor::arange(shape[0], (Kind::Int64, found.device())) * shape[1];
                let here = index(part, &found);
                let known = distances.index_select(0, &here);
                let better = per_image(&nearest.lt_tensor(&known));
                let images = end.images.index_select(0, &pick).where_self(&better, &found.index_select(0, &here));
                write_rows(&mut found, part, &images);
                write_rows(&mut distances, part, &nearest.minimum(&known));
            }
            if !self.config.minimize {
                let is_inside = oracle.read(&[&within(&distances, threat)])?;
                open.retain(|&row| is_inside[row] == 0.0);
                if open.is_empty() {
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// Whether distances are within epsilon.
fn within(distances: &Tensor, threat: &ThreatModel) -> Tensor {
    distances.le(threat.epsilon.value())
}

/// A random point around the clean image, half as far as the known distances or epsilon.
fn random_start(draws: &mut Draws, rows: &[usize], clean: &Tensor, threat: &ThreatModel, known: &Tensor) -> Tensor {
    let shape = &clean.size()[1..];
    let request = Request::once(rows, shape, clean.device());
    let noise = match threat.norm {
        Norm::Linf => draws.uniform(&request),
        Norm::L2 | Norm::L1 => draws.normal(&request),
    };
    let noise = noise.squeeze_dim(1);
    let length = per_image(&threat.norm.length(&noise)).clamp_min(1e-12);
    let radius = per_image(&known.clamp_max(threat.epsilon.value()));
    (clean + noise / length * radius * START_SHARE).clamp(0.0, 1.0)
}

/// What `Fab::walk` ends with.
#[derive(Debug)]
pub struct Nearest {
    /// f32 `[N, C, H, W]`: the nearest images that reach the goal; the clean ones where there is none.
    pub images: Tensor,
    /// Their distances, f32 `[N]`; infinite where there is none.
    pub distances: Tensor,
}

impl Fab {
    /// Runs FAB from `start`, f32 `[rows, C, H, W]`. Unless the options minimize, a sample leaves with all its rows when
    /// one of them is within epsilon: it is broken then.
    ///
    /// * `rows`: sample of the batch that each row belongs to; rows of one sample are adjacent.
    /// * `aims`: i64 `[rows]`, the class that each row walks towards; `None` for the nearest.
    pub(crate) fn walk(
        &self,
        oracle: &mut Oracle<'_>,
        batch: &AttackBatch<'_>,
        rows: &[usize],
        mut aims: Option<Tensor>,
        threat: &ThreatModel,
        start: Tensor,
    ) -> Result<Nearest, AttackError> {
        let norm = threat.norm;
        let mut active = Active::new(rows);
        let mut samples = Samples::of(batch, rows);
        let mut end = Nearest {
            images: samples.clean.copy(),
            distances: Tensor::full([rows.len() as i64], f64::INFINITY, (Kind::Float, start.device())),
        };
        let mut x = start;
        let mut best = samples.clean.copy();
        let mut best_distance = end.distances.copy();

        for step in 1..=self.config.steps {
            let Samples { clean, labels, .. } = &samples;
            let (difference, direction) = match &aims {
                Some(aims) => {
                    let (labels, aims) = (labels.unsqueeze(1), aims.unsqueeze(1));
                    let found = oracle.gradient(&x, active.samples(), |_, logits| match &samples.targets {
                        // Where the target passes the label, another class may be ahead of both: then that one is in the way.
                        Some(_) => -samples.batch(&[]).goal_margin(logits),
                        None => (logits.gather(1, &aims, false) - logits.gather(1, &labels, false)).squeeze_dim(1),
                    })?;
                    let (direction, factor) = in_range(&found.gradient);
                    (scaled(&found.losses, &factor), direction)
                }
                None => nearest_boundary(oracle, &x, active.samples(), labels, norm)?,
            };
            let w = direction.flatten(1, -1);
            let (here, origin) = (x.flatten(1, -1), clean.flatten(1, -1));
            let b = (&w * &here).sum_dim_intlist([1i64].as_slice(), false, Kind::Float) - difference;
            let both = project_on_hyperplane(norm, &Tensor::stack(&[&here, &origin], 0), &w, &b);
            let lengths = norm.length(&both.flatten(0, 1)).clamp_min(1e-8).view([2, -1, 1, 1, 1]);
            let [near, far] = [lengths.get(0), lengths.get(1)];
            let [from_here, from_origin] = [both.get(0).view_as(&x), both.get(1).view_as(&x)];
            let bias = (&near / (&near + far)).clamp(0.0, self.config.alpha_max);
            let eta = self.config.eta;
            let mixed: Tensor = (&x + from_here * eta) * (1.0 - &bias) + (clean + from_origin * eta) * &bias;
            x = mixed.clamp(0.0, 1.0);

            let hit = samples.reached(&oracle.logits(&x, active.samples())?);
            let distance = norm.distance(&x, clean);
            let better = active.open(hit.logical_and(&distance.lt_tensor(&best_distance)));
            best = x.where_self(&per_image(&better), &best);
            best_distance = distance.where_self(&better, &best_distance);
            x = (clean + (&x - clean) * self.config.beta).where_self(&per_image(&hit), &x);

            if !self.config.minimize {
                active.note(within(&best_distance, threat));
                if let Some(Leaving { done, left }) = active.leave(oracle, 2, step == self.config.steps)? {
                    active.store(&mut end.images, &done, &best);
                    active.store(&mut end.distances, &done, &best_distance);
                    if left.is_empty() {
                        return Ok(end);
                    }
                    let own = [&mut x, &mut best, &mut best_distance];
                    active.keep(&left, samples.tensors().chain(own).chain(aims.as_mut()));
                }
            }
        }
        write_rows(&mut end.images, active.slots(), &best);
        write_rows(&mut end.distances, active.slots(), &best_distance);
        Ok(end)
    }
}

/// Shortest change of each point onto a hyperplane inside the box, in a norm.
///
/// * `points`: f32 `[.., N, D]` in `[0, 1]`; the hyperplane is `w . z = b` with `w`: f32 `[N, D]`, `b`: f32 `[N]`.
///
/// Returns f32 `[.., N, D]`, to add to the points. Where the hyperplane misses the box, the change to the
/// corner of the box that is nearest to it. Croce & Hein 2020 (arXiv:1907.02044), section 3.1.
///
/// On the way to the hyperplane the value i can only move against `sign(w_i)`, by at most its room
/// `u_i`, and brings `|w_i|` per unit. The best moves are `min(t, u_i)` (Linf), `min(t |w_i|, u_i)` (L2) for
/// the multiplier t at which they add up, and whole rooms in the order of `|w_i|` (L1).
pub fn project_on_hyperplane(norm: Norm, points: &Tensor, w: &Tensor, b: &Tensor) -> Tensor {
    if norm != Norm::L1 && host::is_at_hand(points.device()) {
        let moves = hyperplane_moves(norm, [points, w, b].map(host::to_vec).each_ref().map(Vec::as_slice));
        return Tensor::from_slice(&moves).view_as(points);
    }
    let gap = sum(w * points) - b.unsqueeze(1);
    let sign = (w * gap.sign()).sign();
    let weight = w.abs();
    let headroom: Tensor = 1.0 - points;
    let room = headroom.where_self(&sign.lt(0.0), points);
    let needed = gap.abs();
    let gain = &weight * &room;
    let moves = match norm {
        Norm::L1 => {
            let (sorted_weight, order) = weight.sort(1, true);
            let order = order.expand_as(&gain);
            let gain = gain.gather(-1, &order, false).to_kind(Kind::Double);
            let before = gain.cumsum(-1, Kind::Double) - &gain;
            let left = (needed - before).clamp_min(0.0);
            let taken = (left / sorted_weight.to_kind(Kind::Double).clamp_min(1e-30)).to_kind(Kind::Float);
            let taken = taken.minimum(&room.gather(-1, &order, false));
            room.zeros_like().scatter(-1, &order, &taken)
        }
        Norm::Linf => multiplier(&gain, &weight, &needed).minimum(&room),
        Norm::L2 => (&weight * multiplier(&gain, &weight.square(), &needed)).minimum(&room),
    };
    -(sign * moves)
}

fn sum(values: Tensor) -> Tensor {
    values.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)
}

/// The t of each row at which the gains `min(t rate_i, gain_i)` add up to what is needed: f32 `[.., N, 1]`, the
/// largest f32 where they never do.
///
/// Newton's method on a piecewise linear, concave, increasing function: from below it never overshoots, and it has
/// arrived as soon as the set of rooms that are full stays the same. It is given a fixed number of steps, so that nothing
/// waits for its arrival: after them it is short of the plane at most, and FAB takes the next step of its own from there.
/// The same result from sorted rooms costs several times as much.
fn multiplier(gain: &Tensor, rate: &Tensor, needed: &Tensor) -> Tensor {
    let zero = gain.zeros_like();
    // As if no room were ever full: not too far.
    let mut t = (needed / sum(rate.shallow_clone())).nan_to_num(0.0, f64::from(f32::MAX), 0.0);
    for _ in 0..NEWTON_STEPS {
        let open = (&t * rate).lt_tensor(gain);
        let slope = sum(rate.where_self(&open, &zero));
        let full = sum(zero.where_self(&open, gain));
        let next = ((needed - full) / &slope).clamp_min(0.0);
        let next = next.masked_fill(&slope.le(0.0), f64::from(f32::MAX)).clamp_max(f64::from(f32::MAX));
        // Rounding may not send it back.
        t = next.maximum(&t);
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

    /// 3,072 rooms of all sizes, against bisection in f64; more is needed from row to row.
    #[test]
    fn the_steps_of_the_multiplier_are_enough() {
        let d = 3072;
        let (gain, rate) = {
            let at = Tensor::arange(d, (Kind::Float, tch::Device::Cpu));
            let (room, rate) = ((&at * 0.754_877_7).frac(), (&at * 0.569_840_3).frac() + 0.01);
            ((room * &rate).unsqueeze(0), rate.unsqueeze(0))
        };
        let [gains, rates] = [&gain, &rate].map(|t| Vec::<f64>::try_from(t.get(0).to_kind(Kind::Double)).unwrap());
        let total: f64 = gains.iter().sum();
        for share in [1e-3, 0.05, 0.3, 0.6, 0.9] {
            let sum = |t: f64| gains.iter().zip(&rates).map(|(gain, rate)| gain.min(t * rate)).sum::<f64>();
            let (mut low, mut high) = (0.0, 2.0);
            for _ in 0..60 {
                let middle = 0.5 * (low + high);
                if sum(middle) < share * total { low = middle } else { high = middle }
            }
            let needed = Tensor::from_slice(&[(share * total) as f32]).view([1, 1]);
            let got = multiplier(&gain, &rate, &needed).double_value(&[0, 0]);
            assert!((got / low - 1.0).abs() < 1e-4, "{share}: {got} instead of {low}");
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

    /// Fixed numbers without structure in `[0, 1)`.
    fn noise(shape: &[i64], stride: f64) -> Tensor {
        let n: i64 = shape.iter().product();
        (Tensor::arange(n, (Kind::Float, tch::Device::Cpu)) * stride).frac().view(shape)
    }

    /// Hyperplanes near and far, one that misses the box, one through the point, one without a normal.
    #[test]
    fn projections_are_the_same_as_on_a_gpu() {
        let points = noise(&[2, 6, 3001], 0.754_877_666);
        let w = noise(&[6, 3001], 0.569_840_291) - 0.5;
        let _zeros = w.get(5).fill_(0.0);
        let here = (&w * points.get(0)).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let b = here + Tensor::from_slice(&[1e-3f32, -0.7, 40.0, -1e6, 0.0, 0.2]);
        for norm in [Norm::Linf, Norm::L2] {
            let ours = project_on_hyperplane(norm, &points, &w, &b);
            let theirs = host::far(|| project_on_hyperplane(norm, &points, &w, &b));
            let apart = (&ours - &theirs).abs().max().double_value(&[]);
            assert!(apart < 2e-6, "{norm}: {apart}");
            assert!(ours.get(0).get(1).abs().max().double_value(&[]) > 1e-4, "it moves");
        }
    }
}
