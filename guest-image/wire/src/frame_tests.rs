use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::*;

fn samples() -> Vec<ToHost> {
    vec![
        ToHost::Hello {
            protocol: PROTOCOL_VERSION,
            kernel_release: "6.12.1".into(),
            uptime_ms: 1234,
            sleep_10ms_took_ms: 10,
            mounts: vec![MountReport {
                tag: "myfs1".into(),
                mount_point: "/mnt/virtiofs1".into(),
                error: Some("no such device".into()),
            }],
        },
        ToHost::Output { stream: Stream::Stderr, data: vec![0xff; MAX_CHUNK] },
        ToHost::TestFinished {
            name: "chmod/00.t:1".into(),
            status: TestStatus::Skip,
            duration_us: u64::MAX,
            message: "why".into(),
        },
        ToHost::Artefact { test: "generic/001".into(), kind: "full".into(), data: vec![0xfe; MAX_ARTEFACT] },
        ToHost::ExecFinished { end: ProcessEnd::Signaled(9) },
        ToHost::StdinConsumed { bytes: 7 },
        ToHost::Pong,
        ToHost::Goodbye,
    ]
}

fn encoded(frames: &[ToHost]) -> Vec<u8> {
    frames.iter().flat_map(|frame| encode_frame(frame).unwrap()).collect()
}

#[test]
fn frames_come_out_of_a_reader_as_they_were_written() {
    let mut bytes = Vec::new();
    for frame in samples() {
        write_frame(&mut bytes, &frame).unwrap();
    }
    let mut reader = Cursor::new(bytes);
    for frame in samples() {
        assert_eq!(read_frame::<ToHost>(&mut reader).unwrap(), Some(frame));
    }
    assert_eq!(read_frame::<ToHost>(&mut reader).unwrap(), None);
}

#[test]
fn a_decoder_gives_the_same_frames_however_the_bytes_are_cut() {
    let bytes = encoded(&samples());
    for step in [1, 3, 4, 5, 100, 70_000, bytes.len()] {
        let mut decoder = FrameDecoder::default();
        let mut got = Vec::new();
        for piece in bytes.chunks(step) {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame::<ToHost>().unwrap() {
                got.push(frame);
            }
        }
        assert_eq!(got, samples(), "in pieces of {step}");
        assert!(decoder.is_at_boundary());
    }
}

#[test]
fn a_stream_that_ends_inside_a_frame_is_truncated() {
    let bytes = encoded(&samples()[..1]);
    for end in 1..bytes.len() {
        let error = read_frame::<ToHost>(&mut Cursor::new(&bytes[..end])).unwrap_err();
        assert!(matches!(error, FrameError::Truncated), "cut at {end}: {error:?}");
        let mut decoder = FrameDecoder::default();
        decoder.push(&bytes[..end]);
        assert!(decoder.next_frame::<ToHost>().unwrap().is_none());
        assert!(!decoder.is_at_boundary());
    }
}

#[test]
fn a_length_over_the_limit_is_refused_before_anything_is_allocated() {
    for length in [MAX_FRAME as u32 + 1, u32::MAX] {
        let prefix = length.to_le_bytes();
        assert!(matches!(read_frame::<ToHost>(&mut Cursor::new(prefix)), Err(FrameError::TooLong(_))));
        let mut decoder = FrameDecoder::default();
        decoder.push(&prefix);
        assert!(matches!(decoder.next_frame::<ToHost>(), Err(FrameError::TooLong(_))));
    }
}

#[test]
fn a_frame_over_the_limit_is_not_encoded() {
    let frame = ToHost::Output { stream: Stream::Stdout, data: vec![0; MAX_FRAME] };
    assert!(matches!(encode_frame(&frame), Err(FrameError::TooLong(_))));
}

#[test]
fn a_frame_with_bytes_left_over_is_refused() {
    let mut bytes = encode_frame(&ToHost::Goodbye).unwrap();
    bytes.push(0);
    bytes[0] += 1;
    assert!(matches!(read_frame::<ToHost>(&mut Cursor::new(bytes)), Err(FrameError::Overlong(1))));
}

#[test]
fn a_failing_reader_is_reported_as_such() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    assert!(matches!(read_frame::<ToHost>(&mut Broken), Err(FrameError::Io(_))));
}

proptest! {
    #[test]
    fn random_bytes_give_an_error_or_a_frame_but_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut reader = Cursor::new(bytes.clone());
        while let Ok(Some(_)) = read_frame::<ToGuest>(&mut reader) {}
        let mut decoder = FrameDecoder::default();
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.next_frame::<ToHost>() {}
    }

    #[test]
    fn random_bodies_behind_a_right_length_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        let from_reader = read_frame::<ToHost>(&mut Cursor::new(&bytes));
        let mut decoder = FrameDecoder::default();
        decoder.push(&bytes);
        let from_decoder = decoder.next_frame::<ToHost>();
        prop_assert_eq!(from_reader.ok(), from_decoder.ok());
    }
}
