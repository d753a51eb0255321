use c2r_base::LabelledImages;
use c2r_data::{Batches, DatasetSpec, Rows, Split};
use c2r_models::{Frozen, ModelInput};
use tch::{Device, Kind, Tensor};

use crate::{LabelSource, TrainError};

/// What a network for a dataset takes: the size of its images, its classes, and mean and deviation of each channel in [0, 1].
pub fn model_input(spec: &DatasetSpec) -> ModelInput {
    ModelInput {
        channels: spec.channels,
        height: spec.height,
        width: spec.width,
        n_classes: spec.classes.len() as i64,
        mean: spec.mean.clone(),
        std: spec.std.clone(),
    }
}

/// What the network is to say for each training image.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// The image's label.
    Hard,
    /// Stored distributions, f32 `[N, K]`, rows summing to 1, in the order of the images.
    Soft(&'a Tensor),
    /// The output of a network for each augmented view, computed at each step.
    Teacher(Teacher<'a>),
}

/// A network whose softmax is learned.
#[derive(Clone, Copy, Debug)]
pub struct Teacher<'a> {
    /// It sees the same pixels as the network that learns.
    pub network: &'a Frozen,
    /// Its logits are divided by it before the softmax; positive, 1 for the network's own probabilities.
    pub temperature: f64,
}

impl Targets<'_> {
    /// The [`LabelSource`] that this is.
    pub const fn label_source(&self) -> LabelSource {
        match self {
            Self::Hard => LabelSource::Hard,
            Self::Soft(_) => LabelSource::Soft,
            Self::Teacher(_) => LabelSource::Teacher,
        }
    }
}

/// A training set.
#[derive(Clone, Copy, Debug)]
pub struct TrainSource<'a> {
    images: Images<'a>,
    targets: Targets<'a>,
    most_bytes: Option<usize>,
    formation: usize,
}

#[derive(Clone, Copy, Debug)]
enum Images<'a> {
    Tensors(&'a LabelledImages),
    Bytes(&'a Split),
}

impl<'a> TrainSource<'a> {
    /// Images that fit on the device as f32, such as a distilled set.
    pub const fn new(images: &'a LabelledImages, targets: Targets<'a>) -> Self {
        Self { images: Images::Tensors(images), targets, most_bytes: None, formation: 1 }
    }

    /// A real training set, kept as bytes; floats are made batch by batch.
    pub const fn of_split(split: &'a Split, targets: Targets<'a>) -> Self {
        Self { images: Images::Bytes(split), targets, most_bytes: None, formation: 1 }
    }

    /// Changes how many bytes of a real training set the device keeps at most ([`Batches::new`]).
    pub const fn keeping(self, most_bytes: usize) -> Self {
        Self { most_bytes: Some(most_bytes), ..self }
    }

    /// Says that each run of `formation` times `formation` images are the tiles of one mosaic, as [`c2r_data::SyntheticSet::decode`] gives
    /// them; only [`crate::Order::TileByTile`] asks.
    pub const fn of_mosaics(self, formation: usize) -> Self {
        Self { formation, ..self }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        match self.images {
            Images::Tensors(images) => images.len(),
            Images::Bytes(split) => split.len(),
        }
    }

    /// Whether there is no image; training on it is an error.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks the set against the network's input and the config's label source, and puts it on `device`.
    pub(crate) fn load(
        &self,
        input: &ModelInput,
        labels: LabelSource,
        device: Device,
    ) -> Result<LoadedSource<'a>, TrainError> {
        let ensure = |fits: bool, reason: String| if fits { Ok(()) } else { Err(TrainError::Source(reason)) };
        ensure(!self.is_empty(), "there are no images".into())?;
        let (classes, takes) = (input.n_classes, input.image_shape());
        let shape = match self.images {
            Images::Tensors(images) => images.image_shape(),
            Images::Bytes(split) => split.shape(),
        };
        ensure(shape == takes, format!("images are {shape:?}, but the network takes {takes:?}"))?;
        let images = match self.images {
            Images::Tensors(images) => {
                images.check_classes(classes).map_err(|error| TrainError::Source(error.to_string()))?;
                Loaded::Tensors { images: images.images().to_device(device), labels: images.labels().to_device(device) }
            }
            Images::Bytes(split) => {
                let n = split.n_classes() as i64;
                ensure(n <= classes, format!("there are {n} classes, but the network has {classes}"))?;
                Loaded::Bytes(Batches::new(split, device, self.most_bytes))
            }
        };
        let given = self.targets.label_source();
        let reason = format!("the configuration asks for {labels:?} labels, but the training set has {given:?} ones");
        ensure(given == labels, reason)?;
        let (soft, teacher) = match self.targets {
            Targets::Hard => (None, None),
            Targets::Soft(soft) => {
                check_soft(soft, self.len() as i64, classes)?;
                (Some(soft.detach().to_device(device)), None)
            }
            Targets::Teacher(teacher) => {
                let Teacher { network, temperature } = teacher;
                let reason = format!("the teacher's temperature must be positive, got {temperature}");
                ensure(temperature.is_finite() && temperature > 0.0, reason)?;
                let (theirs, place) = (network.model().input(), network.model().device());
                let (their_shape, their_classes) = (theirs.image_shape(), theirs.n_classes);
                let reason = format!(
                    "the teacher takes {their_shape:?} and tells {their_classes} classes apart, the student takes {shape:?} \
                     and tells {classes} apart"
                );
                ensure(their_shape == shape && their_classes == classes, reason)?;
                ensure(place == device, format!("the teacher is on {place:?}, the student on {device:?}"))?;
                (None, Some(teacher))
            }
        };
        let classes = Tensor::arange(classes, (Kind::Int64, device));
        Ok(LoadedSource { images, soft, teacher, classes, device, formation: self.formation })
    }
}

/// How far the sum of a stored distribution may be from 1.
const SOFT_SUM_TOLERANCE: f64 = 1e-3;

fn check_soft(soft: &Tensor, n: i64, classes: i64) -> Result<(), TrainError> {
    let wrong = |reason: String| Err(TrainError::Source(reason));
    if soft.size() != [n, classes] || soft.kind() != Kind::Float {
        return wrong(format!("soft labels must be Float [{n}, {classes}], got {:?} {:?}", soft.kind(), soft.size()));
    }
    let sums = soft.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let fits = (sums - 1.0).abs().le(SOFT_SUM_TOLERANCE).logical_and(&soft.ge(0.0).all_dim(1, false));
    let n_wrong = n - fits.sum(Kind::Int64).int64_value(&[]);
    if n_wrong > 0 {
        let first = fits.to_kind(Kind::Int64).argmin(0, false).int64_value(&[]);
        return wrong(format!(
            "{n_wrong} soft labels are not distributions (negative, or not summing to 1); the first is {first}"
        ));
    }
    Ok(())
}

/// A training set on the device of the network.
#[derive(Debug)]
pub(crate) struct LoadedSource<'a> {
    images: Loaded,
    /// Stored distributions, f32 `[N, K]`.
    soft: Option<Tensor>,
    /// The network that labels each view.
    pub(crate) teacher: Option<Teacher<'a>>,
    /// 0 to K - 1, i64 `[K]`.
    classes: Tensor,
    pub(crate) device: Device,
    /// Images in a row that were cut from one mosaic.
    pub(crate) formation: usize,
}

#[derive(Debug)]
enum Loaded {
    Tensors { images: Tensor, labels: Tensor },
    Bytes(Batches),
}

impl LoadedSource<'_> {
    pub(crate) fn len(&self) -> usize {
        match &self.images {
            Loaded::Tensors { labels, .. } => labels.size()[0] as usize,
            Loaded::Bytes(batches) => batches.split().len(),
        }
    }

    /// Images f32 `[n, C, H, W]` in `[0, 1]` and the distributions that are stored for them, f32 `[n, K]`: those of the
    /// labels unless there are others.
    pub(crate) fn batch(&self, rows: &Rows) -> (Tensor, Tensor) {
        let (images, labels) = match &self.images {
            Loaded::Tensors { images, labels } => {
                (images.index_select(0, &rows.index), labels.index_select(0, &rows.index))
            }
            Loaded::Bytes(batches) => batches.batch(rows),
        };
        let distributions = match &self.soft {
            Some(soft) => soft.index_select(0, &rows.index),
            None => labels.unsqueeze(1).eq_tensor(&self.classes).to_kind(Kind::Float),
        };
        (images, distributions)
    }
}
