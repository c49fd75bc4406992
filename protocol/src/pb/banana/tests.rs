use proptest::prelude::*;

use super::*;

/// All expressions in `bytes`, given to the decoder `chunk` bytes at a time.
fn decode(bytes: &[u8], chunk: usize) -> Result<Vec<Expression>, Violation> {
    let mut decoder = Decoder::default();
    let mut expressions = Vec::new();
    for piece in bytes.chunks(chunk) {
        decoder.push(piece);
        while let Some(expression) = decoder.next_expression()? {
            expressions.push(expression);
        }
    }
    Ok(expressions)
}

pub(in crate::pb) fn encode(expression: &Expression) -> Vec<u8> {
    let mut encoder = Encoder::default();
    encoder.expression(expression).unwrap();
    encoder.take()
}

fn check(bytes: &[u8], expected: Expression) {
    assert_eq!(decode(bytes, bytes.len()), Ok(vec![expected.clone()]));
    assert_eq!(encode(&expected), bytes);
}

fn refused(bytes: &[u8], expected: Violation) {
    assert_eq!(decode(bytes, bytes.len()), Err(expected));
}

#[test]
fn bytes_are_those_of_twisted() {
    use Expression::{Bytes, Float, Int, List};
    check(b"\x00\x81", Int(0));
    check(b"\x7f\x81", Int(127));
    check(b"\x00\x01\x81", Int(128));
    check(b"\x7f\x7f\x7f\x7f\x07\x81", Int(0x7fff_ffff));
    check(b"\x00\x00\x00\x00\x08\x85", Int(0x8000_0000));
    check(b"\x01\x83", Int(-1));
    check(b"\x00\x00\x00\x00\x08\x83", Int(-0x8000_0000));
    check(b"\x01\x00\x00\x00\x08\x86", Int(-0x8000_0001));
    check(b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x86", Int(i64::MIN));
    check(
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x85",
        Expression::BigInt(BigInt { negative: false, digits: b"\0\0\0\0\0\0\0\0\0\x01".to_vec() }),
    );
    check(b"\x84\x3f\xf8\x00\x00\x00\x00\x00\x00", Float(1.5));
    check(b"\x02\x82hi", Bytes(b"hi".to_vec()));
    check(b"\x00\x82", Bytes(Vec::new()));
    check(b"\x0b\x87", Bytes(b"tuple".to_vec()));
    check(b"\x02\x80\x01\x81\x00\x80", List(vec![Int(1), List(Vec::new())]));
}

#[test]
fn any_type_byte_of_integers_takes_any_integer() {
    assert_eq!(decode(b"\x05\x85\x05\x86\x81", 1), Ok([5, -5, 0].map(Expression::Int).to_vec()));
}

#[test]
fn bounds_are_kept() {
    refused(&[0x01; 65], Violation::TooManyDigits);
    refused(&[0xff], Violation::UnknownType(0xff));
    refused(&[0x00, 0x87], Violation::UnknownWord);
    refused(&[0x20, 0x87], Violation::UnknownWord);
    // 655,361 in three digits.
    refused(&[0x01, 0x00, 0x28, 0x82], Violation::TooLong);
    refused(&[0x01, 0x00, 0x28, 0x80], Violation::TooLong);
    refused(&[0x01, 0x80].repeat(MAX_DEPTH + 1), Violation::TooDeep);
    // Lists of lists of nothing: each of them costs.
    let mut bytes = vec![0x00, 0x00, 0x28, 0x80];
    for _ in 0..4 {
        bytes.extend([0x00, 0x00, 0x28, 0x80]);
        bytes.extend([0x00, 0x80].repeat(SIZE_LIMIT));
    }
    refused(&bytes, Violation::TooLarge);
    let mut bytes = vec![0x7f, 0x80];
    for _ in 0..103 {
        bytes.extend([0x00, 0x00, 0x28, 0x82]);
        bytes.extend([b'x'].repeat(SIZE_LIMIT));
    }
    refused(&bytes, Violation::TooLarge);
}

#[test]
fn what_fails_to_be_written_leaves_nothing_behind() {
    let mut encoder = Encoder::default();
    encoder.int(1);
    let result = encoder.whole(|encoder| {
        encoder.list(1)?;
        encoder.bytes(&vec![0; SIZE_LIMIT + 1])
    });
    assert_eq!(result, Err(TooLong { length: SIZE_LIMIT + 1 }));
    assert_eq!(encoder.take(), [0x01, 0x81]);
    encoder.bytes(&vec![0; SIZE_LIMIT]).unwrap();
}

pub(in crate::pb) fn any_expression() -> impl Strategy<Value = Expression> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Expression::Int),
        any::<f64>().prop_filter("equal to itself", |f| !f.is_nan()).prop_map(Expression::Float),
        any::<Vec<u8>>().prop_map(Expression::Bytes),
        prop::sample::select(&WORDS[..]).prop_map(|word| Expression::Bytes(word.as_bytes().to_vec())),
        (any::<bool>(), prop::collection::vec(0..0x80_u8, 10..64), 1..0x80_u8).prop_map(|(negative, digits, top)| {
            Expression::BigInt(BigInt { negative, digits: digits.into_iter().chain([top]).collect() })
        }),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| prop::collection::vec(inner, 0..8).prop_map(Expression::List))
}

proptest! {
    #[test]
    fn an_expression_survives_the_wire_however_it_is_split(
        expressions in prop::collection::vec(any_expression(), 0..4),
        chunk in 1..40_usize,
    ) {
        let bytes: Vec<u8> = expressions.iter().flat_map(encode).collect();
        prop_assert_eq!(decode(&bytes, chunk), Ok(expressions));
    }

    #[test]
    fn any_bytes_mean_the_same_however_they_are_split(bytes in any::<Vec<u8>>(), chunk in 1..10_usize) {
        prop_assert_eq!(decode(&bytes, chunk), decode(&bytes, 1000));
    }
}
