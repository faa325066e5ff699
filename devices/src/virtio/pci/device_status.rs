//! The device status register (virtio 1.2 § 2.1): which bits a driver's write may set, and what follows from it.

/// ACKNOWLEDGE: the guest found the device.
pub(super) const ACKNOWLEDGE: u8 = 1;
/// DRIVER: the guest knows how to drive it.
pub(super) const DRIVER: u8 = 2;
/// DRIVER_OK: set up and ready.
pub(super) const DRIVER_OK: u8 = 4;
/// FEATURES_OK: features are negotiated.
pub(super) const FEATURES_OK: u8 = 8;
/// DEVICE_NEEDS_RESET: the device cannot go on. Set by the device.
pub(super) const DEVICE_NEEDS_RESET: u8 = 64;
/// FAILED: the guest gave the device up.
pub(super) const FAILED: u8 = 128;

/// What a write asks for, in the order in which it has to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Bit that is simply set.
    Set(u8),
    /// FEATURES_OK: set if the features are acceptable.
    CheckFeatures,
    /// DRIVER_OK: start the device.
    Start,
}

/// The steps from `current` for a non-zero write of `written`. Bits are never cleared but by a reset, and each needs
/// the ones before it; a bit written out of order is left out, which the driver sees when it reads back.
pub(super) fn steps(current: u8, written: u8) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut reached = current;
    for (bit, needs, step) in [
        (ACKNOWLEDGE, 0, Step::Set(ACKNOWLEDGE)),
        (DRIVER, ACKNOWLEDGE, Step::Set(DRIVER)),
        (FEATURES_OK, ACKNOWLEDGE | DRIVER, Step::CheckFeatures),
        (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK, Step::Start),
        (FAILED, 0, Step::Set(FAILED)),
    ] {
        if written & !reached & bit != 0 && reached & needs == needs {
            reached |= bit;
            steps.push(step);
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_walks_through_the_states() {
        assert_eq!(steps(0, 1), [Step::Set(ACKNOWLEDGE)]);
        assert_eq!(steps(1, 3), [Step::Set(DRIVER)]);
        assert_eq!(steps(3, 11), [Step::CheckFeatures]);
        assert_eq!(steps(11, 15), [Step::Start]);
    }

    #[test]
    fn bits_out_of_order_are_left_out() {
        assert_eq!(steps(0, DRIVER), []);
        assert_eq!(steps(1, FEATURES_OK), []);
        assert_eq!(steps(3, 7), []);
    }

    #[test]
    fn bits_set_before_are_no_step_and_cleared_ones_neither() {
        assert_eq!(steps(15, 15), []);
        assert_eq!(steps(15, 1), []);
        assert_eq!(steps(15, 15 | DEVICE_NEEDS_RESET), []);
        assert_eq!(steps(15, 15 | FAILED), [Step::Set(FAILED)]);
    }
}
