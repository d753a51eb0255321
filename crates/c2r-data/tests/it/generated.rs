//! The example that generates images in the layout of ILSVRC-2012.

use std::fs;

use c2r_data::{Split, load};
use ndarray::{Axis, s};

#[expect(dead_code, reason = "`main` is for the command line")]
#[path = "../../examples/generate_imagenet.rs"]
mod example;

/// Mean colour of each image.
fn colours(split: &Split) -> Vec<[f32; 3]> {
    let mean = |image: usize, channel: usize| {
        let plane = split.images().slice(s![image, channel, .., ..]).mapv(f32::from);
        plane.mean_axis(Axis(0)).unwrap().mean().unwrap()
    };
    (0..split.len()).map(|image| [0, 1, 2].map(|channel| mean(image, channel))).collect()
}

#[test]
fn generated_pictures_are_read_are_the_same_again_and_differ_by_class() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    folders.iter().for_each(|folder| example::generate(folder.path(), 6).unwrap());
    assert!(example::generate(folders[0].path(), 6).unwrap_err().to_string().contains("exists"));
    let file = "imagenet/train/n02102040/n02102040_5.JPEG";
    let [a, b] = [&folders[0], &folders[1]].map(|folder| fs::read(folder.path().join(file)).unwrap());
    assert_eq!(a, b);

    let data = load("imagenette", Some(folders[0].path())).unwrap();
    assert_eq!(
        data.notes,
        [
            "imagenette from ILSVRC-2012 (imagenet/): 60 training and 60 test images",
            "imagenette: 1 other file was not read (train/n01440764/GENERATED.txt)",
        ]
    );
    let (train, test) = (colours(&data.train), colours(&data.test));
    let labels = [&data.train, &data.test].map(|split| split.labels().to_vec());
    let mut means = [[0.0f32; 3]; 10];
    for (colour, &class) in train.iter().zip(&labels[0]) {
        (0..3).for_each(|channel| means[class as usize][channel] += colour[channel] / 6.0);
    }
    let distance = |a: &[f32; 3], b: &[f32; 3]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    let right = test.iter().zip(&labels[1]).filter(|(colour, class)| {
        let nearest = (0..10).min_by(|&a, &b| distance(colour, &means[a]).total_cmp(&distance(colour, &means[b])));
        nearest == Some(**class as usize)
    });
    let right = right.count();
    // Chance finds 6 of 60, and more than 15 in one of 5,000 tries.
    assert!((16..60).contains(&right), "{right} of 60 by their mean colour");
}
