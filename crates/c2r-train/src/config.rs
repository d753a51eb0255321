use std::{fmt, str::FromStr};

use c2r_base::{Epsilon, Norm};
use c2r_data::dsa::Dsa;
use serde::{Deserialize, Serialize};

use crate::{
    SgdConfig, TrainError, layers,
    ranges::{below_one, count, count_or_none, in_range, not_negative, positive, radius},
};

/// How a network is trained. [`Protocol`] gives every field a value with a source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrainConfig {
    /// How long: `{ epochs = 1000 }` or `{ steps = 500 }`.
    pub length: Length,
    /// Images per step; a smaller training set is one batch. The last batch of an epoch may be smaller.
    pub batch_size: usize,
    /// SGD's learning rate at the beginning.
    pub lr: f64,
    /// SGD's momentum.
    pub momentum: f64,
    /// SGD's weight decay, on all parameters.
    pub weight_decay: f64,
    /// How the learning rate changes.
    pub lr_schedule: LrSchedule,
    /// Which images make up a batch.
    #[serde(default, skip_serializing_if = "Order::is_shuffled")]
    pub order: Order,
    /// Augmentation of each batch: one operation for the batch with parameters of its own for each image, on
    /// normalized values, as the field trains.
    pub dsa: Dsa,
    /// CutMix (Yun et al. 2019, arXiv:1905.04899): the part of the steps, in `[0, 1]`, in which a rectangle of each image
    /// is that of another image of its batch; labels are mixed by area, and a teacher labels the mixed image.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cutmix: f64,
    /// Which labels are learned; must be what the [`crate::TrainSource`] holds.
    pub labels: LabelSource,
    /// Adversarial training; without, training is natural.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adversarial: Option<AdversarialConfig>,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", from = "LengthTable")]
pub enum Length {
    /// Passes over the training set.
    Epochs(u64),
    /// Optimizer steps, whatever the size of the training set.
    Steps(u64),
}

/// [`Length`] in a file, so that an error shows how to write it.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields, expecting = "this must be { epochs = N } or { steps = N }")]
enum LengthTable {
    Epochs { epochs: u64 },
    Steps { steps: u64 },
}

impl From<LengthTable> for Length {
    fn from(table: LengthTable) -> Self {
        match table {
            LengthTable::Epochs { epochs } => Self::Epochs(epochs),
            LengthTable::Steps { steps } => Self::Steps(steps),
        }
    }
}

impl Length {
    /// Optimizer steps for a training set of `n_images` in batches of `batch_size`.
    pub fn steps(self, n_images: usize, batch_size: usize) -> u64 {
        match self {
            Self::Epochs(epochs) => epochs * n_images.div_ceil(batch_size) as u64,
            Self::Steps(steps) => steps,
        }
    }
}

/// How the learning rate changes over training.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LrSchedule {
    /// Not at all.
    #[default]
    Constant,
    /// A tenth from the middle of training on. (The authors of DC also restart the momentum there; this keeps it.)
    HalfWay,
    /// A tenth of what it was from each of these zero-based epochs on, however long the training is.
    TenthAtEpochs(Vec<u64>),
    /// Half a cosine from the whole rate down to zero.
    Cosine,
}

impl LrSchedule {
    /// Whether the rate stays as it is.
    pub const fn is_constant(&self) -> bool {
        matches!(self, Self::Constant)
    }

    /// Factor of the learning rate at a zero-based `step` of `steps`, in the zero-based `epoch`.
    pub fn factor(&self, step: u64, steps: u64, epoch: u64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::HalfWay if step < steps.div_ceil(2) => 1.0,
            Self::HalfWay => 0.1,
            Self::TenthAtEpochs(from) => 0.1f64.powi(from.iter().filter(|&&from| epoch >= from).count() as i32),
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos()),
        }
    }
}

/// Which images make up a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// A permutation of its own in every epoch.
    #[default]
    Shuffled,
    /// As they are stored, the same batches in every epoch.
    Stored,
    /// As they are stored, but of mosaics ([`crate::TrainSource::of_mosaics`]) the top left tile of each, then the one below it of
    /// each, and so on, column by column: as DD-RobustBench decodes the sets of IDM and ROME, which mixes the classes in every batch.
    /// (It decodes those of IDC and DREAM class by class and row by row.)
    TileByTile,
}

impl Order {
    const fn is_shuffled(&self) -> bool {
        matches!(self, Self::Shuffled)
    }
}

/// Which labels the network learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelSource {
    /// One class per image.
    Hard,
    /// One stored distribution per image.
    Soft,
    /// The distribution that a teacher gives for each augmented view.
    Teacher,
}

/// Adversarial training: every batch is attacked before it is learned.
///
/// The attack sees the augmented batch, clamped to `[0, 1]`, through the network's evaluation view.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AdversarialConfig {
    /// How perturbations are measured.
    pub norm: Norm,
    /// Radius, pixel units.
    #[serde(deserialize_with = "radius")]
    pub epsilon: Epsilon,
    /// Length of a step as a part of epsilon.
    pub rel_step_size: f64,
    /// Gradient steps of the inner attack, each one forward and one backward pass.
    pub steps: u32,
    /// Whether the attack starts at a random point: uniform in the ball for PGD-AT, and for TRADES Gaussian
    /// with deviation 0.001 as in its authors' code. TRADES cannot move without it, because the gradient
    /// of its inner loss is zero at the image.
    pub random_start: bool,
    /// What is learned from the attacked images.
    pub loss: AdversarialLoss,
}

/// What is learned from attacked images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdversarialLoss {
    /// Cross-entropy of the attacked images alone (Madry et al. 2018, arXiv:1706.06083).
    PgdAt,
    /// Cross-entropy of the clean images plus a weight times the divergence of clean and attacked
    /// predictions, which is also what the attack raises (Zhang et al. 2019, arXiv:1901.08573).
    Trades(TradesConfig),
}

/// Settings of [`AdversarialLoss::Trades`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TradesConfig {
    /// Weight of the divergence.
    pub beta: f64,
}

/// A named training setting of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Natural training on shuffled batches, the field's usual one.
    Natural,
    /// Natural training exactly as DD-RobustBench's code does it.
    DdRobustbench,
    /// PGD adversarial training.
    PgdAt,
    /// TRADES.
    Trades,
}

impl Protocol {
    /// All protocols.
    pub const ALL: [Self; 4] = [Self::Natural, Self::DdRobustbench, Self::PgdAt, Self::Trades];

    /// The protocol's setting for a distilled set, from `data/protocols/`, where every value has its source; PGD-AT and
    /// TRADES attack at 2/255 in Linf with the steps of their papers.
    pub fn config(self) -> TrainConfig {
        self.read(false)
    }

    /// The protocol's setting for a whole real training set, which it is trained on to convergence: [`Protocol::config`]
    /// with the keys of the file's section `[full-data]`.
    pub fn full_data(self) -> TrainConfig {
        self.read(true)
    }

    /// The protocol's file, `data/protocols/*.toml`, as it was when this program was built.
    pub fn text(self) -> &'static str {
        match self {
            Self::Natural => include_str!("../../../data/protocols/natural.toml"),
            Self::DdRobustbench => include_str!("../../../data/protocols/dd-robustbench.toml"),
            Self::PgdAt => include_str!("../../../data/protocols/pgd-at.toml"),
            Self::Trades => include_str!("../../../data/protocols/trades.toml"),
        }
    }

    fn read(self, full_data: bool) -> TrainConfig {
        const VALID: &str = "the file is a valid configuration, as a test checks";
        let mut table: toml::Table = self.text().parse().expect(VALID);
        match table.remove("full-data") {
            Some(toml::Value::Table(changes)) if full_data => layers::merge(&mut table, changes),
            _ => {}
        }
        layers::read(table).expect(VALID)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Natural => "natural",
            Self::DdRobustbench => "dd-robustbench",
            Self::PgdAt => "pgd-at",
            Self::Trades => "trades",
        })
    }
}

/// A text that names no [`Protocol`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a training protocol (natural, dd-robustbench, pgd-at or trades)")]
pub struct ParseProtocolError(String);

impl FromStr for Protocol {
    type Err = ParseProtocolError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.to_string() == text)
            .ok_or_else(|| ParseProtocolError(text.to_owned()))
    }
}

impl TrainConfig {
    /// The optimizer's part.
    pub const fn sgd(&self) -> SgdConfig {
        SgdConfig { lr: self.lr, momentum: self.momentum, weight_decay: self.weight_decay }
    }

    /// Checks that every number makes sense.
    ///
    /// # Errors
    /// [`TrainError::Config`] naming the first field that does not.
    pub fn check(&self) -> Result<(), TrainError> {
        let (Length::Epochs(length) | Length::Steps(length)) = self.length;
        count("length", length)?;
        count("batch-size", self.batch_size as u64)?;
        positive("lr", self.lr)?;
        below_one("momentum", self.momentum)?;
        not_negative("weight-decay", self.weight_decay)?;
        in_range((0.0..=1.0).contains(&self.cutmix), "cutmix", "in [0, 1]", self.cutmix)?;
        let Some(AdversarialConfig { norm, epsilon, rel_step_size, steps, random_start, loss }) = self.adversarial
        else {
            return Ok(());
        };
        positive("adversarial.rel-step-size", rel_step_size)?;
        positive("adversarial.epsilon", epsilon.value())?;
        let reaches_all = norm == Norm::Linf && epsilon.value() >= 1.0;
        let expected = "below 1 (pixels are in [0, 1]; write 8/255 for 8)";
        in_range(!reaches_all, "adversarial.epsilon", expected, epsilon)?;
        let expected = "at least 1 (leave `adversarial` out to train naturally)";
        in_range(steps >= 1, "adversarial.steps", expected, steps)?;
        count_or_none("adversarial.steps", u64::from(steps))?;
        if let AdversarialLoss::Trades(TradesConfig { beta }) = loss {
            positive("adversarial.loss.trades.beta", beta)?;
            let expected = "true for TRADES, whose gradient is zero at the image";
            in_range(random_start, "adversarial.random-start", expected, random_start)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_round_trip_and_are_valid() {
        for protocol in Protocol::ALL {
            let config = protocol.config();
            config.check().unwrap();
            let toml = toml::to_string(&config).unwrap();
            assert_eq!(toml::from_str::<TrainConfig>(&toml).unwrap(), config, "{toml}");
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<TrainConfig>(&json).unwrap(), config);
            assert_eq!(protocol.to_string().parse::<Protocol>().unwrap(), protocol);
            assert_eq!(serde_json::to_string(&protocol).unwrap(), format!("\"{protocol}\""));
        }
        // The protocols differ in nothing but the attack, and that at the radius of the tables.
        for protocol in [Protocol::PgdAt, Protocol::Trades] {
            for (mut config, natural) in
                [(protocol.config(), Protocol::Natural.config()), (protocol.full_data(), Protocol::Natural.full_data())]
            {
                let adversarial = config.adversarial.take().unwrap();
                assert_eq!(config, natural);
                assert_eq!((adversarial.norm, adversarial.epsilon), (Norm::Linf, Epsilon::of_255(2.0)));
            }
        }
        // A whole training set has a length, a rate and a schedule of its own, and nothing else.
        for protocol in Protocol::ALL {
            let (full, distilled) = (protocol.full_data(), protocol.config());
            full.check().unwrap();
            let (length, lr, lr_schedule) = (distilled.length, distilled.lr, distilled.lr_schedule.clone());
            assert!(full.length != length && full.lr_schedule != lr_schedule, "{protocol}");
            assert_eq!(TrainConfig { length, lr, lr_schedule, ..full }, distilled, "{protocol}");
        }
        assert_eq!(Protocol::Natural.config().dsa, Dsa::full());
        // DD-RobustBench differs from the usual in one epoch more, its rate, and no shuffling.
        let letter = Protocol::DdRobustbench.config();
        let rates = [0, 499, 500, 999, 1000].map(|epoch| letter.lr_schedule.factor(0, 1, epoch));
        for (rate, expected) in rates.into_iter().zip([1.0, 1.0, 0.1, 0.1, 0.01]) {
            assert!((rate - expected).abs() < 1e-12, "{rates:?}");
        }
        assert_eq!((letter.length, letter.order), (Length::Epochs(1001), Order::TileByTile));
        let usual = Protocol::Natural.config();
        let (length, order, lr_schedule) = (usual.length, usual.order, usual.lr_schedule.clone());
        assert_eq!(TrainConfig { length, order, lr_schedule, ..letter }, usual);
        assert!("pgd".parse::<Protocol>().unwrap_err().to_string().contains("pgd-at"));
    }

    #[test]
    fn a_radius_in_8_bit_units_is_refused() {
        let mut config = Protocol::PgdAt.config();
        let adversarial = config.adversarial.as_mut().unwrap();
        adversarial.epsilon = "8".parse().unwrap();
        let TrainError::Config(error) = config.check().unwrap_err() else { panic!("a config is checked") };
        assert_eq!((error.key, &*error.got), ("adversarial.epsilon", "8"));
        config.adversarial.as_mut().unwrap().norm = Norm::L2;
        config.check().unwrap();
        config.adversarial.as_mut().unwrap().epsilon = Epsilon::ZERO;
        let TrainError::Config(error) = config.check().unwrap_err() else { panic!("a config is checked") };
        assert_eq!((error.key, &*error.got), ("adversarial.epsilon", "0"));
    }

    #[test]
    fn a_radius_is_a_text_or_a_number() {
        let toml = toml::to_string(&Protocol::PgdAt.config()).unwrap();
        let read = |radius: &str| toml::from_str::<TrainConfig>(&toml.replace("\"2/255\"", radius));
        for radius in ["\"1/4\"", "\"0.25\"", "0.25"] {
            assert_eq!(read(radius).unwrap().adversarial.unwrap().epsilon.value(), 0.25, "{radius}");
        }
        assert_eq!(read("3").unwrap().adversarial.unwrap().epsilon.value(), 3.0);
        let message = read("true").unwrap_err().to_string();
        assert!(message.contains("this must be a radius in pixel units, e.g. 2/255"), "{message}");
    }

    #[test]
    fn unknown_keys_are_errors_at_every_level() {
        let toml = toml::to_string(&Protocol::Trades.config()).unwrap();
        for (place, wrong) in [
            ("batch-size = 256", "batch-size = 256\nmomemtum = 0.5"),
            ("rel-step-size = 0.25", "rel-step-size = 0.25\nstep-size = 0.1"),
            ("beta = 6.0", "beta = 6.0\ngamma = 1.0"),
        ] {
            assert!(toml.contains(place), "{toml}");
            let message = toml::from_str::<TrainConfig>(&toml.replace(place, wrong)).unwrap_err().to_string();
            assert!(message.contains("unknown"), "{message}");
        }
    }

    #[test]
    fn a_wrong_length_is_shown_the_right_one() {
        let toml = toml::to_string(&Protocol::Natural.config()).unwrap();
        let length = toml.lines().skip_while(|line| *line != "[length]").nth(1).unwrap();
        for wrong in ["epoch = 3", "epochs = 1.5", "epochs = 3\nsteps = 4", ""] {
            let message = toml::from_str::<TrainConfig>(&toml.replace(length, wrong)).unwrap_err().to_string();
            assert!(message.contains("this must be { epochs = N } or { steps = N }"), "{wrong}: {message}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let check = |key: &str, change: &dyn Fn(&mut TrainConfig)| {
            let mut config = Protocol::Trades.config();
            change(&mut config);
            let error = config.check().unwrap_err();
            assert!(matches!(&error, TrainError::Config(range) if range.key == key), "{error:?} instead of {key}");
        };
        check("length", &|config| config.length = Length::Steps(0));
        check("length", &|config| config.length = Length::Epochs(i64::MAX as u64));
        check("batch-size", &|config| config.batch_size = 0);
        check("batch-size", &|config| config.batch_size = i64::MAX as usize);
        check("lr", &|config| config.lr = f64::NAN);
        check("momentum", &|config| config.momentum = 1.0);
        check("cutmix", &|config| config.cutmix = 1.5);
        check("weight-decay", &|config| config.weight_decay = -1.0);
        check("adversarial.steps", &|config| config.adversarial.as_mut().unwrap().steps = 0);
        check("adversarial.steps", &|config| config.adversarial.as_mut().unwrap().steps = u32::MAX);
        check("adversarial.random-start", &|config| config.adversarial.as_mut().unwrap().random_start = false);
    }

    #[test]
    fn schedules_at_their_corners() {
        assert_eq!([0, 4, 5, 9].map(|step| LrSchedule::HalfWay.factor(step, 10, 0)), [1.0, 1.0, 0.1, 0.1]);
        assert_eq!([0, 1, 2].map(|step| LrSchedule::HalfWay.factor(step, 3, 0)), [1.0, 1.0, 0.1]);
        assert_eq!(LrSchedule::HalfWay.factor(0, 1, 0), 1.0);
        assert_eq!(LrSchedule::Cosine.factor(0, 10, 0), 1.0);
        assert!((LrSchedule::Cosine.factor(5, 10, 0) - 0.5).abs() < 1e-12);
        assert_eq!(Length::Epochs(3).steps(101, 50), 9);
        assert_eq!(Length::Epochs(3).steps(10, 256), 3);
        assert_eq!(Length::Steps(7).steps(101, 50), 7);
    }
}
