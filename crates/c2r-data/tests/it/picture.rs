use c2r_data::write_grid;
use ndarray::{Array4, arr1};

#[test]
fn pixels_are_repeated_not_blurred() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/grid.png");
    let images = arr1(&[0.0, 1.0, 0.2, 0.4, 2.0, -1.0, 0.6, 0.8]).into_shape_with_order((2, 1, 2, 2)).unwrap();
    write_grid(&path, images.view(), &[vec![0, 1], vec![1]]).unwrap();
    let picture = image::open(&path).unwrap().to_rgb8();
    // 2x2 pixels are enlarged 32 times; 2 white pixels lie between and around.
    assert_eq!(picture.dimensions(), (2 * 66 + 2, 2 * 66 + 2));
    let grey = |x: u32, y: u32| {
        let image::Rgb([r, g, b]) = *picture.get_pixel(x, y);
        assert!(r == g && g == b);
        r
    };
    assert_eq!(
        [grey(0, 0), grey(2, 2), grey(33, 33), grey(34, 33), grey(65, 2), grey(66, 2)],
        [255, 0, 0, 255, 255, 255]
    );
    assert_eq!([grey(2, 34), grey(65, 65)], [51, 102]);
    // The second image, clamped; then the second row, which has no second image.
    assert_eq!([grey(68, 2), grey(100, 2), grey(68, 34), grey(100, 34)], [255, 0, 153, 204]);
    assert_eq!([grey(2, 68), grey(40, 68), grey(100, 100)], [255, 0, 255]);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn colours_keep_their_channels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grid.png");
    let images = Array4::from_shape_fn((1, 3, 70, 70), |(_, c, ..)| [1.0, 0.6, 0.2][c]);
    write_grid(&path, images.view(), &[vec![0]]).unwrap();
    let picture = image::open(&path).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (74, 74));
    assert_eq!(picture.get_pixel(40, 40).0, [255, 153, 51]);
}

#[test]
fn what_cannot_be_drawn_is_an_error() {
    let path = std::path::Path::new("never/written.png");
    let rows = [vec![0]];
    let of = |c: usize, h: usize, rows: &[Vec<usize>]| {
        write_grid(path, Array4::zeros((1, c, h, 4)).view(), rows).unwrap_err().to_string()
    };
    assert!(of(2, 4, &rows).contains("[1, 2, 4, 4]"));
    assert!(of(1, 0, &rows).contains("[1, 1, 0, 4]"));
    assert!(of(1, 4, &[vec![]]).contains("no image"));
    assert!(!path.exists());
}
