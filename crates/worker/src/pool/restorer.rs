//! A program for guests: Linux on x86-64, with whatever else in it or nothing at all.
//!
//! A clone wakes up with the clock and the random numbers of its template. Setting the one and reseeding the other takes
//! system calls that no shell has, and not every guest has an interpreter that does. So the program is put into the guest
//! before it is frozen, by the profile's `prepare`: as root's and with root's rights for the image's user, who has them by
//! `sudo` anyway. `sudo` itself takes longer than all the rest.
//!
//! It writes `ready`, reads a [`line()`] from its standard input, sets the clock and reseeds the kernel's random number
//! generator. With an argument, it then writes its environment as `env -0` does. Starting it takes long in an emulated guest, and does not count: the line is made when it is there to read
//! it. When a call fails it writes which to its standard error and exits with the error's number.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::TryRngCore;
use rand::rngs::OsRng;

/// What the program says to ask for a line.
pub(super) const READY: &[u8] = b"ready\n";

/// How much entropy a line has, in bytes.
const ENTROPY: usize = 64;

/// What the program is told: seconds since 1970, nanoseconds, and entropy of this host in hexadecimal digits.
///
/// # Errors
/// This host has no entropy to give.
pub(super) fn line() -> anyhow::Result<String> {
    let mut entropy = [0; ENTROPY];
    OsRng.try_fill_bytes(&mut entropy)?;
    Ok(format(SystemTime::now().duration_since(UNIX_EPOCH)?, &entropy))
}

fn format(time: Duration, entropy: &[u8]) -> String {
    let digits: String = entropy.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {} {digits}\n", time.as_secs(), time.subsec_nanos())
}

/// Where the program is in memory.
const ADDRESS: u64 = 0x40_0000;

/// The size of an ELF header, and of one that describes a segment.
const HEADER: u16 = 64;
const SEGMENT: u16 = 56;

/// The program, as an executable file.
pub(super) fn program() -> Vec<u8> {
    let start = u64::from(HEADER + 2 * SEGMENT);
    let size = start + (CODE.len() + TEXTS.len()) as u64;
    let mut file = Vec::new();
    // ELF for 64 bits, little endian, version 1, ABI of System V.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // An executable for x86-64, version 1; its entry; its segments' headers, which come next; no sections; no flags.
    file.extend([2_u16, 62].iter().flat_map(|field| field.to_le_bytes()));
    file.extend(1_u32.to_le_bytes());
    file.extend([ADDRESS + start, u64::from(HEADER), 0].iter().flat_map(|field| field.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    file.extend([HEADER, SEGMENT, 2, 0, 0, 0].iter().flat_map(|field| field.to_le_bytes()));
    // PT_LOAD, to be read and executed: the whole file.
    file.extend([1_u32, 5].iter().flat_map(|field| field.to_le_bytes()));
    file.extend([0, ADDRESS, ADDRESS, size, size, 0x1000].iter().flat_map(|field| field.to_le_bytes()));
    // PT_GNU_STACK, to be read and written: guests that are strict about it would refuse one that can be executed.
    file.extend([0x6474_e551_u32, 6].iter().flat_map(|field| field.to_le_bytes()));
    file.extend([0_u64, 0, 0, 0, 0, 16].iter().flat_map(|field| field.to_le_bytes()));
    file.extend(CODE);
    file.extend(TEXTS);
    file
}

/// What the program does. It writes to nothing but its stack.
#[rustfmt::skip]
const CODE: &[u8] = &[
    // _start:
    //
    // On the stack: two times at 0x00 and 0x10, what is read from 0x20 on, the time to set at 0x1e0. R12: how often it was set.
    0x48, 0x81, 0xec, 0x00, 0x02, 0x00, 0x00,          // sub $0x200, %rsp
    0x45, 0x31, 0xe4,                                  // xor %r12d, %r12d
    //
    // Ask for a line, and note when by the clock that only runs: clock_gettime(CLOCK_MONOTONIC), write(1, "ready\n", 6).
    // ready:
    0xb8, 0xe4, 0x00, 0x00, 0x00,                      // mov $228, %eax
    0xbf, 0x01, 0x00, 0x00, 0x00,                      // mov $1, %edi
    0x48, 0x89, 0xe6,                                  // mov %rsp, %rsi
    0x0f, 0x05,                                        // syscall
    0xb8, 0x01, 0x00, 0x00, 0x00,                      // mov $1, %eax
    0xbf, 0x01, 0x00, 0x00, 0x00,                      // mov $1, %edi
    0x48, 0x8d, 0x35, 0xc9, 0x01, 0x00, 0x00,          // lea word(%rip), %rsi
    0xba, 0x06, 0x00, 0x00, 0x00,                      // mov $6, %edx
    0x0f, 0x05,                                        // syscall
    //
    // Read up to a line end. RBX is behind what was read.
    0x48, 0x8d, 0x5c, 0x24, 0x20,                      // lea 0x20(%rsp), %rbx
    // more:
    0x31, 0xc0,                                        // xor %eax, %eax
    0x31, 0xff,                                        // xor %edi, %edi
    0x48, 0x89, 0xde,                                  // mov %rbx, %rsi
    0x48, 0x8d, 0x94, 0x24, 0xe0, 0x01, 0x00, 0x00,    // lea 0x1e0(%rsp), %rdx
    0x48, 0x29, 0xda,                                  // sub %rbx, %rdx
    0x0f, 0x05,                                        // syscall
    0x48, 0x8d, 0x35, 0xa8, 0x01, 0x00, 0x00,          // lea n_read(%rip), %rsi
    0x48, 0x85, 0xc0,                                  // test %rax, %rax
    0x0f, 0x88, 0x02, 0x01, 0x00, 0x00,                // js failed
    0x0f, 0x84, 0xf2, 0x00, 0x00, 0x00,                // jz end
    0x48, 0x01, 0xc3,                                  // add %rax, %rbx
    0x80, 0x7b, 0xff, 0x0a,                            // cmpb $'\n', -1(%rbx)
    0x75, 0xcd,                                        // jne more
    //
    // Note when that was; then the two numbers.
    0xb8, 0xe4, 0x00, 0x00, 0x00,                      // mov $228, %eax
    0xbf, 0x01, 0x00, 0x00, 0x00,                      // mov $1, %edi
    0x48, 0x8d, 0x74, 0x24, 0x10,                      // lea 0x10(%rsp), %rsi
    0x0f, 0x05,                                        // syscall
    0x48, 0x8d, 0x74, 0x24, 0x20,                      // lea 0x20(%rsp), %rsi
    0xe8, 0x3f, 0x01, 0x00, 0x00,                      // call number
    0x48, 0x89, 0x84, 0x24, 0xe0, 0x01, 0x00, 0x00,    // mov %rax, 0x1e0(%rsp)
    0xe8, 0x32, 0x01, 0x00, 0x00,                      // call number
    0x48, 0x89, 0x84, 0x24, 0xe8, 0x01, 0x00, 0x00,    // mov %rax, 0x1e8(%rsp)
    //
    // What follows is the entropy, 4 bits a character, and the 8 bytes before it, of numbers that are not needed any more,
    // become the head of a rand_pool_info: the number of bits, and of bytes. R13 is its address.
    0x48, 0xff, 0xcb,                                  // dec %rbx
    0x48, 0x29, 0xf3,                                  // sub %rsi, %rbx
    0x89, 0x5e, 0xfc,                                  // mov %ebx, -4(%rsi)
    0xc1, 0xe3, 0x02,                                  // shl $2, %ebx
    0x89, 0x5e, 0xf8,                                  // mov %ebx, -8(%rsi)
    0x4c, 0x8d, 0x6e, 0xf8,                            // lea -8(%rsi), %r13
    //
    // clock_settime(CLOCK_REALTIME).
    0xb8, 0xe3, 0x00, 0x00, 0x00,                      // mov $227, %eax
    0x31, 0xff,                                        // xor %edi, %edi
    0x48, 0x8d, 0xb4, 0x24, 0xe0, 0x01, 0x00, 0x00,    // lea 0x1e0(%rsp), %rsi
    0x0f, 0x05,                                        // syscall
    0x48, 0x8d, 0x35, 0x55, 0x01, 0x00, 0x00,          // lea n_clock(%rip), %rsi
    0x85, 0xc0,                                        // test %eax, %eax
    0x0f, 0x85, 0x90, 0x00, 0x00, 0x00,                // jnz failed
    //
    // open("/dev/urandom", O_RDONLY), ioctl(RNDADDENTROPY), ioctl(RNDRESEEDCRNG), close.
    0xb8, 0x02, 0x00, 0x00, 0x00,                      // mov $2, %eax
    0x48, 0x8d, 0x3d, 0x81, 0x01, 0x00, 0x00,          // lea path(%rip), %rdi
    0x31, 0xf6,                                        // xor %esi, %esi
    0x0f, 0x05,                                        // syscall
    0x48, 0x8d, 0x35, 0x46, 0x01, 0x00, 0x00,          // lea n_device(%rip), %rsi
    0x85, 0xc0,                                        // test %eax, %eax
    0x78, 0x75,                                        // js failed
    0x89, 0xc5,                                        // mov %eax, %ebp
    0xb8, 0x10, 0x00, 0x00, 0x00,                      // mov $16, %eax
    0x89, 0xef,                                        // mov %ebp, %edi
    0xbe, 0x03, 0x52, 0x08, 0x40,                      // mov $0x40085203, %esi
    0x4c, 0x89, 0xea,                                  // mov %r13, %rdx
    0x0f, 0x05,                                        // syscall
    0x48, 0x8d, 0x35, 0x38, 0x01, 0x00, 0x00,          // lea n_add(%rip), %rsi
    0x85, 0xc0,                                        // test %eax, %eax
    0x75, 0x57,                                        // jnz failed
    0xb8, 0x10, 0x00, 0x00, 0x00,                      // mov $16, %eax
    0x89, 0xef,                                        // mov %ebp, %edi
    0xbe, 0x07, 0x52, 0x00, 0x00,                      // mov $0x5207, %esi
    0x0f, 0x05,                                        // syscall
    0x48, 0x8d, 0x35, 0x2f, 0x01, 0x00, 0x00,          // lea n_reseed(%rip), %rsi
    0x85, 0xc0,                                        // test %eax, %eax
    0x75, 0x3e,                                        // jnz failed
    0xb8, 0x03, 0x00, 0x00, 0x00,                      // mov $3, %eax
    0x89, 0xef,                                        // mov %ebp, %edi
    0x0f, 0x05,                                        // syscall
    //
    // The line was made after "ready" was written, so the clock is late by less than what has passed since. If that is more
    // than 100 ms, ask again.
    0x41, 0xff, 0xc4,                                  // inc %r12d
    0x48, 0x8b, 0x44, 0x24, 0x10,                      // mov 0x10(%rsp), %rax
    0x48, 0x2b, 0x04, 0x24,                            // sub (%rsp), %rax
    0x48, 0x69, 0xc0, 0x00, 0xca, 0x9a, 0x3b,          // imul $1000000000, %rax, %rax
    0x48, 0x03, 0x44, 0x24, 0x18,                      // add 0x18(%rsp), %rax
    0x48, 0x2b, 0x44, 0x24, 0x08,                      // sub 0x8(%rsp), %rax
    0x48, 0x3d, 0x00, 0xe1, 0xf5, 0x05,                // cmp $100000000, %rax
    0x0f, 0x87, 0xba, 0xfe, 0xff, 0xff,                // ja ready
    0xeb, 0x25,                                        // jmp success
    //
    // The input has ended: well, if the clock has been set, else ENODATA.
    // end:
    0x45, 0x85, 0xe4,                                  // test %r12d, %r12d
    0x75, 0x20,                                        // jnz success
    0xb8, 0xc3, 0xff, 0xff, 0xff,                      // mov $-61, %eax
    //
    // Write which call failed (RSI), and exit with its error number (-RAX).
    // failed:
    0xf7, 0xd8,                                        // neg %eax
    0x41, 0x89, 0xc4,                                  // mov %eax, %r12d
    0xb8, 0x01, 0x00, 0x00, 0x00,                      // mov $1, %eax
    0xbf, 0x02, 0x00, 0x00, 0x00,                      // mov $2, %edi
    0xba, 0x10, 0x00, 0x00, 0x00,                      // mov $16, %edx
    0x0f, 0x05,                                        // syscall
    0x44, 0x89, 0xe7,                                  // mov %r12d, %edi
    0xeb, 0x45,                                        // jmp exit
    //
    // With an argument, write the environment. The kernel puts its strings one behind the other: RSI is where they begin, and
    // RDX gets behind the last one's NUL. Then exit.
    // success:
    0x48, 0x8b, 0x8c, 0x24, 0x00, 0x02, 0x00, 0x00,    // mov 0x200(%rsp), %rcx
    0x48, 0x83, 0xf9, 0x02,                            // cmp $2, %rcx
    0x72, 0x35,                                        // jb well
    0x48, 0x8d, 0xbc, 0xcc, 0x10, 0x02, 0x00, 0x00,    // lea 0x210(%rsp,%rcx,8), %rdi
    0x48, 0x8b, 0x37,                                  // mov (%rdi), %rsi
    0x48, 0x85, 0xf6,                                  // test %rsi, %rsi
    0x74, 0x25,                                        // jz well
    // last:
    0x48, 0x8b, 0x17,                                  // mov (%rdi), %rdx
    0x48, 0x83, 0xc7, 0x08,                            // add $8, %rdi
    0x48, 0x83, 0x3f, 0x00,                            // cmpq $0, (%rdi)
    0x75, 0xf3,                                        // jne last
    // text:
    0x80, 0x3a, 0x00,                                  // cmpb $0, (%rdx)
    0x48, 0x8d, 0x52, 0x01,                            // lea 1(%rdx), %rdx
    0x75, 0xf7,                                        // jne text
    0x48, 0x29, 0xf2,                                  // sub %rsi, %rdx
    0xb8, 0x01, 0x00, 0x00, 0x00,                      // mov $1, %eax
    0xbf, 0x01, 0x00, 0x00, 0x00,                      // mov $1, %edi
    0x0f, 0x05,                                        // syscall
    // well:
    0x31, 0xff,                                        // xor %edi, %edi
    // exit:
    0xb8, 0x3c, 0x00, 0x00, 0x00,                      // mov $60, %eax
    0x0f, 0x05,                                        // syscall
    //
    // Takes a decimal number and a space from RSI on into RAX; anything else is EINVAL.
    // number:
    0x31, 0xc0,                                        // xor %eax, %eax
    // digit:
    0x0f, 0xb6, 0x0e,                                  // movzbl (%rsi), %ecx
    0x48, 0xff, 0xc6,                                  // inc %rsi
    0x83, 0xe9, 0x30,                                  // sub $'0', %ecx
    0x83, 0xf9, 0x09,                                  // cmp $9, %ecx
    0x77, 0x09,                                        // ja past
    0x48, 0x6b, 0xc0, 0x0a,                            // imul $10, %rax, %rax
    0x48, 0x01, 0xc8,                                  // add %rcx, %rax
    0xeb, 0xe9,                                        // jmp digit
    // past:
    0x83, 0xf9, 0xf0,                                  // cmp $(' ' - '0'), %ecx
    0x74, 0x11,                                        // je done
    0x48, 0x8d, 0x35, 0x21, 0x00, 0x00, 0x00,          // lea n_line(%rip), %rsi
    0xb8, 0xea, 0xff, 0xff, 0xff,                      // mov $-22, %eax
    0xe9, 0x6a, 0xff, 0xff, 0xff,                      // jmp failed
    // done:
    0xc3,                                              // ret
];

/// What the program says, in the order of the code's references: its word, then names of 16 bytes each, then a path.
const TEXTS: &[u8] = b"ready\n\
    read failed    \n\
    no such time   \n\
    clock_settime  \n\
    /dev/urandom   \n\
    RNDADDENTROPY  \n\
    RNDRESEEDCRNG  \n\
    /dev/urandom\0";

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use nix::libc;

    use super::*;

    /// Runs the program on this host, without the right to set its clock: what it says, complains of, and its exit status.
    fn run(input: &str) -> (String, String, Option<i32>) {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("restore");
        std::fs::write(&file, program()).expect("write the program");
        for path in [directory.path(), &file] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("let others run it");
        }
        let mut command = Command::new(&file);
        if nix::unistd::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the program");
        let mut stdin = child.stdin.take().expect("it is piped");
        // It may have ended by itself.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("wait for the program");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (text(output.stdout), text(output.stderr), output.status.code())
    }

    #[test]
    fn it_asks_for_a_line_and_says_which_call_failed() {
        let check = |input: &str, complaint: &str, error: i32| {
            let complaint = format!("{complaint:15}\n");
            assert_eq!(run(input), ("ready\n".to_owned(), complaint, Some(error)), "{input:?}");
        };
        check("", "read failed", libc::ENODATA);
        check("1700000000 5 00", "read failed", libc::ENODATA);
        check(&"1".repeat(1000), "read failed", libc::ENODATA);
        check("\n", "no such time", libc::EINVAL);
        check("1700000000\n", "no such time", libc::EINVAL);
        check("1700000000 -5 00\n", "no such time", libc::EINVAL);
        check("now 5 00\n", "no such time", libc::EINVAL);
        // The time is right, and refused for want of privileges; one that never is comes to another error.
        check(&line().expect("a line"), "clock_settime", libc::EPERM);
        check("1700000000 1000000000 00\n", "clock_settime", libc::EINVAL);
    }

    #[test]
    fn a_line_is_a_time_and_entropy_that_is_never_the_same() {
        let time = Duration::new(1_700_000_000, 5_000_000);
        assert_eq!(format(time, &[0, 0x1f, 0xff]), "1700000000 5000000 001fff\n");
        let entropy = || {
            let line = line().expect("a line");
            line.trim_end().rsplit_once(' ').map(|(_, entropy)| entropy.to_owned()).expect("three words")
        };
        let (first, second) = (entropy(), entropy());
        assert_eq!((first.len(), second.len()), (2 * ENTROPY, 2 * ENTROPY));
        assert_ne!(first, second);
    }
}
