use std::collections::{BTreeMap, HashSet};

use c2r_base::Seed;
use c2r_data::{ClassSampler, Split, load, subset};
use c2r_experiment::{Subset, SubsetOrder};
use ndarray::{Array4, ShapeBuilder, arr1, s};
use proptest::prelude::*;
use tch::Device;

use crate::{bytes, values};

/// `n` images of one pixel each, whose value is the position and whose label is `position % n_classes`.
fn numbered(n: usize, n_classes: usize) -> Split {
    let labels = (0..n).map(|position| (position % n_classes) as i64).collect();
    crate::split([1, 1, 1], n_classes, (0..n).map(|position| position as u8).collect(), labels).unwrap()
}

#[test]
fn a_batch_keeps_order_and_layout() {
    let pixels: Vec<u8> = (0..2 * 3 * 2 * 2).collect();
    let split = crate::split([3, 2, 2], 4, pixels, vec![3, 0]).unwrap();
    let (images, labels) = split.batch(&[1, 0, 1], Device::Cpu);
    assert_eq!(images.size(), [3, 3, 2, 2]);
    assert_eq!(Vec::<i64>::try_from(labels).unwrap(), [0, 3, 0]);
    // Image 1, channel 2, row 0, column 1 is byte 12 + 8 + 1.
    assert_eq!(images.double_value(&[0, 2, 0, 1]), f64::from(21.0f32 / 255.0));
    assert_eq!(images.double_value(&[1, 1, 1, 0]), f64::from(6.0f32 / 255.0));
    assert_eq!(values(&images.get(0)), values(&images.get(2)));
    assert_eq!((split.len(), split.shape(), split.n_classes()), (2, [3, 2, 2], 4));
    assert_eq!(split.class_positions(3), [0]);
    assert!(split.class_positions(1).is_empty());
    assert_eq!(values(split.to_labelled().images()), values(&split.batch(&[0, 1], Device::Cpu).0));
    assert_eq!(split.batch(&[], Device::Cpu).0.size(), [0, 3, 2, 2]);
}

#[test]
fn what_does_not_fit_is_named() {
    let message = |shape: (usize, usize, usize, usize), labels: Vec<i64>| {
        Split::new(Array4::zeros(shape), labels.into(), 2).unwrap_err().to_string()
    };
    assert!(message((3, 1, 2, 2), vec![0, 1]).contains("3 images and 2 labels"));
    assert!(message((2, 1, 2, 2), vec![0, 2]).contains("image 1 has label 2, outside 0..=1"));
    assert!(message((2, 1, 2, 2), vec![-1, 0]).contains("image 0 has label -1"));
    assert!(message((1, 1, 0, 2), vec![0]).contains("[1, 0, 2]"));
}

#[test]
fn arrays_of_any_layout_are_read_in_their_order() {
    let plain = Array4::from_shape_fn((2, 3, 4, 5), |(n, c, h, w)| (60 * n + 20 * c + 5 * h + w) as u8);
    let mut columns = Array4::zeros((2, 3, 4, 5).f());
    columns.assign(&plain);
    let mut backwards = plain.slice(s![..;-1, .., .., ..]).to_owned();
    backwards.invert_axis(ndarray::Axis(0));
    let mut labels = arr1(&[1i64, 0]);
    labels.invert_axis(ndarray::Axis(0));
    for images in [plain.clone(), columns, backwards] {
        let split = Split::new(images, labels.clone(), 2).unwrap();
        assert_eq!((split.images(), split.labels()), (plain.view(), arr1(&[0, 1]).view()));
        assert_eq!(bytes(&split.select(&[0])), (0..60).collect::<Vec<u8>>());
    }
}

#[test]
fn parts_of_each_class_are_in_the_order_of_the_files() {
    let split = numbered(10, 3);
    assert_eq!(bytes(&split.subset_per_class(2)), [0, 1, 2, 3, 4, 5]);
    assert_eq!(split.subset_per_class(4).labels(), split.labels());
    assert_eq!(bytes(&split.rest_per_class(2)), [6, 7, 8, 9]);
    assert_eq!(split.rest_per_class(3).labels().to_vec(), [0], "only class 0 has a fourth image");
    assert!(split.rest_per_class(4).is_empty());
    assert_eq!(split.select(&[0, 1, 2]).n_classes(), 3);
}

/// The order of the documentation of `subset`, by Python 3.13:
///
/// ```python
/// key = [hashlib.sha256(f"c2r subset 0 {i}".encode()).hexdigest() for i in range(len(labels))]
/// place = [sum(labels[j] == labels[i] and key[j] < key[i] for j in range(len(labels))) for i in range(len(labels))]
/// sorted(range(len(labels)), key=lambda i: (place[i], key[i]))
/// ```
#[test]
fn samples_are_those_that_python_draws() {
    let drawn = |labels: &[i64], n: usize| subset(labels, n, SubsetOrder::ClassBalanced).unwrap().1;
    let in_turns: Vec<i64> = (0..10).map(|position| position % 3).collect();
    assert_eq!(drawn(&in_turns, 9), [0, 7, 2, 6, 1, 5, 8, 3, 4]);
    let sorted: Vec<i64> = (0..90).map(|position| position / 30).collect();
    let twenty = [40, 65, 0, 41, 67, 13, 36, 84, 7, 25, 88, 46, 14, 78, 38, 6, 63, 33, 2, 51];
    assert_eq!(drawn(&sorted, 20), twenty);
    // Two of one class and five of another: the small one is used up first.
    assert_eq!(drawn(&[0, 0, 1, 1, 1, 1, 1], 6), [0, 6, 2, 1, 5, 3]);
    let chosen = subset(&sorted, 20, SubsetOrder::ClassBalanced).unwrap().0;
    assert_eq!(chosen, Subset { n: 20, of: 90, order: SubsetOrder::ClassBalanced, seed: Some(0) });
}

#[test]
fn samples_are_balanced_at_every_length_and_each_is_the_beginning_of_the_next() {
    let digits = load("digits", None).unwrap();
    let labels: Vec<i64> = digits.test.labels().to_vec();
    let longest = subset(&labels, labels.len() - 1, SubsetOrder::ClassBalanced).unwrap().1;
    assert_eq!(longest.iter().collect::<HashSet<_>>().len(), labels.len() - 1, "no image twice");
    let mut counts = [0usize; 10];
    let smallest = (0..10).map(|class| digits.test.class_positions(class).len()).min().unwrap();
    for (at, &position) in longest.iter().enumerate() {
        counts[labels[position] as usize] += 1;
        let (fewest, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - fewest <= 1 || *fewest == smallest, "{counts:?} after {} images", at + 1);
    }
    for n in [1, 19, 200] {
        assert_eq!(subset(&labels, n, SubsetOrder::ClassBalanced).unwrap().1, longest[..n]);
    }
    assert_eq!(subset(&labels, labels.len(), SubsetOrder::ClassBalanced), None, "all images keep their order");
    let first = subset(&labels, 3, SubsetOrder::First).unwrap();
    assert_eq!(first, (Subset { n: 3, of: 359, order: SubsetOrder::First, seed: None }, vec![0, 1, 2]));
}

#[test]
fn held_out_images_are_balanced_and_apart() {
    let split = numbered(100, 4);
    let (rest, out) = split.hold_out(0.2, Seed::new(3));
    assert_eq!((rest.len(), out.len()), (80, 20));
    let sizes: Vec<usize> = (0..4).map(|class| out.class_positions(class).len()).collect();
    assert_eq!(sizes, [5; 4]);
    let all: HashSet<u8> = rest.images().iter().chain(&out.images()).copied().collect();
    assert_eq!(all.len(), 100);
    assert!(bytes(&out).is_sorted() && bytes(&rest).is_sorted());
    assert_eq!(split.hold_out(0.2, Seed::new(3)).1.images(), out.images());
    assert_ne!(split.hold_out(0.2, Seed::new(4)).1.images(), out.images());
    // Not the same places of every class.
    let places = |class: u8| bytes(&out).into_iter().filter(|at| at % 4 == class).map(|at| at / 4).collect::<Vec<_>>();
    assert_ne!(places(0), places(1));
    // Of 8 images, 1.6 are 2; of 4 images, 0.4 are 1.
    let sizes = [(8, 0.2), (7, 0.2), (4, 0.1)].map(|(n, share)| numbered(n, 1).hold_out(share, Seed::new(0)).1.len());
    assert_eq!(sizes, [2, 1, 1]);
    // A class of one image stays in the rest, and no class is emptied.
    let (rest, out) = numbered(3, 2).hold_out(0.9, Seed::new(0));
    assert_eq!((rest.labels().len(), out.labels().to_vec()), (2, vec![0]));
}

#[test]
fn the_hash_sees_everything() {
    let hash = |shape, n_classes, pixels: &[u8], labels: &[i64]| {
        crate::split(shape, n_classes, pixels.to_vec(), labels.to_vec()).unwrap().sha256()
    };
    let base = hash([1, 1, 2], 2, &[1, 2, 3, 4], &[0, 1]);
    assert_eq!(base, hash([1, 1, 2], 2, &[1, 2, 3, 4], &[0, 1]));
    let others = [
        hash([1, 2, 1], 2, &[1, 2, 3, 4], &[0, 1]),
        hash([1, 1, 2], 3, &[1, 2, 3, 4], &[0, 1]),
        hash([1, 1, 2], 2, &[1, 2, 3, 5], &[0, 1]),
        hash([1, 1, 2], 2, &[1, 2, 3, 4], &[1, 0]),
    ];
    assert!(!others.contains(&base));
    // `1 1 2 2 2\n`, labels 0 and 1 as i64, bytes 1 2 3 4: hashed with sha256sum.
    assert_eq!(base, "847bb5f25937964fcf32feae679189a2572037b5dea5a0bfe8e4d151917bebd9");
}

#[test]
fn digits_are_what_they_were() {
    let digits = load("digits", None).unwrap();
    assert_eq!((digits.train.len(), digits.test.len()), (1438, 359));
    assert_eq!((digits.spec.n_train, digits.spec.n_test), (Some(1438), Some(359)));
    assert!(digits.notes.is_empty());
    // First and last row of the first, a middle and the last image of each split, from the CSV with Python.
    type Row = [u8; 8];
    let expected: [(&Split, usize, i64, Row, Row); 6] = [
        (&digits.train, 0, 0, [0, 0, 80, 207, 143, 16, 0, 0], [0, 0, 96, 207, 159, 0, 0, 0]),
        (&digits.train, 719, 9, [0, 0, 0, 0, 128, 207, 48, 0], [0, 0, 0, 0, 143, 112, 0, 0]),
        (&digits.train, 1437, 9, [0, 0, 128, 207, 223, 80, 0, 0], [0, 0, 128, 255, 255, 207, 32, 0]),
        (&digits.test, 0, 8, [0, 0, 64, 191, 207, 80, 0, 0], [0, 0, 64, 255, 255, 112, 0, 0]),
        (&digits.test, 179, 5, [0, 0, 80, 255, 255, 48, 0, 0], [0, 0, 48, 239, 239, 16, 0, 0]),
        (&digits.test, 358, 8, [0, 0, 159, 223, 128, 16, 0, 0], [0, 16, 128, 191, 223, 191, 16, 0]),
    ];
    for (split, position, label, first, last) in expected {
        let rows = [0, 7].map(|row| split.images().slice(s![position, 0, row, ..]).to_vec());
        assert_eq!((split.labels()[position], rows), (label, [first, last].map(Vec::from)), "{position}");
    }
    let test_sizes: Vec<usize> = (0..10).map(|class| digits.test.class_positions(class).len()).collect();
    assert_eq!(test_sizes, [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]);
    let (images, _) = digits.train.batch(&(0..1438).collect::<Vec<_>>(), Device::Cpu);
    assert!((images.mean(tch::Kind::Double).double_value(&[]) - digits.spec.mean[0]).abs() < 1e-4);
    assert!((images.std(false).double_value(&[]) - digits.spec.std[0]).abs() < 1e-4);
}

#[test]
fn a_sampler_deals_out_every_image_before_it_shuffles_again() {
    let split = numbered(40, 2);
    let mut sampler = ClassSampler::new(Seed::new(1));
    for class in 0..2 {
        for shuffle in 0..3 {
            let mut dealt: Vec<usize> =
                (0..4).flat_map(|draw| sampler.positions(&split, shuffle * 4 + draw, class, 5)).collect();
            assert!(!dealt.is_sorted());
            dealt.sort_unstable();
            assert_eq!(dealt, split.class_positions(class), "{class} {shuffle}");
        }
    }
    assert_ne!(sampler.positions(&split, 0, 0, 5), sampler.positions(&split, 4, 0, 5));
    assert_ne!(sampler.positions(&split, 0, 0, 5), ClassSampler::new(Seed::new(2)).positions(&split, 0, 0, 5));
    let offset = |positions: Vec<usize>| positions.iter().map(|position| position / 2).collect::<Vec<_>>();
    assert_ne!(offset(sampler.positions(&split, 0, 0, 20)), offset(sampler.positions(&split, 0, 1, 20)));
}

#[test]
fn small_and_empty_classes() {
    let split = numbered(3, 4);
    let mut sampler = ClassSampler::new(Seed::new(1));
    assert_eq!(sampler.positions(&split, 0, 1, 3), [1, 1, 1]);
    assert!(sampler.positions(&split, 0, 3, 3).is_empty());
    assert!(sampler.positions(&split, 0, 0, 0).is_empty());
    // Six images in draws of nine: not always the same three come twice.
    let split = numbered(6, 1);
    let draws: HashSet<Vec<usize>> = (0..5).map(|t| sampler.positions(&split, t, 0, 9)).collect();
    assert_eq!(draws.len(), 5);
}

proptest! {
    #![proptest_config(crate::cases(64))]

    /// What was drawn before, and from which split, changes nothing.
    #[test]
    fn draws_do_not_depend_on_those_before(len in 1usize..30, n in 1usize..12, ts in prop::collection::vec(0u64..40, 1..12)) {
        let splits = [numbered(2 * len, 2), numbered(2 * len + 2, 2)];
        let mut sampler = ClassSampler::new(Seed::new(3));
        for (at, t) in ts.into_iter().enumerate() {
            let split = &splits[at / 3 % 2];
            for class in [1, 0] {
                let alone = ClassSampler::new(Seed::new(3)).positions(split, t, class, n);
                prop_assert_eq!(sampler.positions(split, t, class, n), alone, "{} {}", t, class);
            }
        }
    }

    #[test]
    fn draws_are_without_repetition(len in 1usize..30, n in 1usize..40, t in 0u64..1000, seed in 0u64..100) {
        let split = numbered(len, 1);
        let mut sampler = ClassSampler::new(Seed::new(seed));
        let drawn = sampler.positions(&split, t, 0, n);
        prop_assert_eq!(&drawn, &sampler.positions(&split, t, 0, n));
        prop_assert_eq!(drawn.len(), n);
        let mut counts = BTreeMap::new();
        drawn.iter().for_each(|&position| *counts.entry(position).or_insert(0usize) += 1);
        prop_assert!(drawn.iter().all(|&position| position < len));
        prop_assert!(counts.values().all(|&count| count <= n.div_ceil(len)));
        prop_assert_eq!(counts.len(), n.min(len));
    }
}
