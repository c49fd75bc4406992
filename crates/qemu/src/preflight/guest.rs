//! A guest of one sector, which does what every operating system does while it boots.

/// The size of the disk the sector is put on. Firmware takes smaller ones for unreadable (SeaBIOS 1.16).
pub(super) const DISK_SIZE: u64 = 1 << 20;

/// Where the guest reports.
pub(super) const EXIT_PORT: u16 = 0xf4;

/// QEMU's exit code when the guest has got to its end: the exit device doubles what is written to it and adds 1.
pub(super) const DONE: i32 = 0x21;

/// Returns the sector.
pub(super) fn boot_sector() -> [u8; 512] {
    let mut sector = [0; 512];
    sector[..CODE.len()].copy_from_slice(CODE);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// The program, for address 0x7c00. It enters long mode and takes there an exception, a page fault and a timer interrupt,
/// goes to user mode and comes back by a system call: nothing special, but all of it work that a hypervisor has to get
/// right, and that one which can't run a stock kernel fails at.
#[rustfmt::skip]
const CODE: &[u8] = &[
    // Real mode, as the firmware leaves it.
    0xfa,                                              // cli
    0xfc,                                              // cld
    0x31, 0xc0,                                        // xorw %ax, %ax
    0x8e, 0xd8,                                        // movw %ax, %ds
    0x8e, 0xc0,                                        // movw %ax, %es
    0x8e, 0xd0,                                        // movw %ax, %ss
    0xbc, 0x00, 0x7c,                                  // movw $0x7c00, %sp
    //
    // Page tables: level 4 at 0x1000, 3 at 0x2000, 2 at 0x3000, which maps the first 2 MiB, for user mode as well.
    0xbf, 0x00, 0x10,                                  // movw $0x1000, %di
    0xb9, 0x00, 0x18,                                  // movw $0x1800, %cx
    0xf3, 0xab,                                        // rep stosw
    0xc7, 0x06, 0x00, 0x10, 0x07, 0x20,                // movw $0x2007, 0x1000
    0xc7, 0x06, 0x00, 0x20, 0x07, 0x30,                // movw $0x3007, 0x2000
    0xc7, 0x06, 0x00, 0x30, 0x87, 0x00,                // movw $0x0087, 0x3000
    0x66, 0x0f, 0x01, 0x16, 0x7a, 0x7d,                // lgdtl gdtr
    0x66, 0x0f, 0x01, 0x1e, 0x80, 0x7d,                // lidtl idtr
    //
    // CR4: PAE, OSFXSR. EFER: LME, SCE. CR0: PE, PG. From here on long mode.
    0x66, 0xb8, 0x20, 0x02, 0x00, 0x00,                // movl $0x220, %eax
    0x0f, 0x22, 0xe0,                                  // movl %eax, %cr4
    0x66, 0xb8, 0x00, 0x10, 0x00, 0x00,                // movl $0x1000, %eax
    0x0f, 0x22, 0xd8,                                  // movl %eax, %cr3
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0,                // movl $0xc0000080, %ecx
    0x0f, 0x32,                                        // rdmsr
    0x0d, 0x01, 0x01,                                  // orw $0x0101, %ax
    0x0f, 0x30,                                        // wrmsr
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x80,                // movl $0x80000001, %eax
    0x0f, 0x22, 0xc0,                                  // movl %eax, %cr0
    0xea, 0x60, 0x7c, 0x08, 0x00,                      // ljmp $0x08, $long
    // long:
    0xb8, 0x10, 0x00, 0x00, 0x00,                      // movl $0x10, %eax
    0x8e, 0xd0,                                        // movl %eax, %ss
    0xbc, 0x00, 0x70, 0x00, 0x00,                      // movl $0x7000, %esp
    //
    // Interrupt gates for 3 (breakpoint), 8 (timer, where the BIOS has the old interrupt controller deliver it),
    // 14 (page fault), 15 (spurious).
    0xbf, 0x00, 0x80, 0x00, 0x00,                      // movl $0x8000, %edi
    0x31, 0xc0,                                        // xorl %eax, %eax
    0xb9, 0x00, 0x04, 0x00, 0x00,                      // movl $0x400, %ecx
    0xf3, 0xab,                                        // rep stosl
    0xc7, 0x04, 0x25, 0x30, 0x80, 0x00, 0x00, 0x36, 0x7d, 0x08, 0x00, // movl $0x00080000 + breakpoint, 0x8030
    0xc7, 0x04, 0x25, 0x34, 0x80, 0x00, 0x00, 0x00, 0x8e, 0x00, 0x00, // movl $0x00008e00, 0x8034
    0xc7, 0x04, 0x25, 0x80, 0x80, 0x00, 0x00, 0x49, 0x7d, 0x08, 0x00, // movl $0x00080000 + timer, 0x8080
    0xc7, 0x04, 0x25, 0x84, 0x80, 0x00, 0x00, 0x00, 0x8e, 0x00, 0x00, // movl $0x00008e00, 0x8084
    0xc7, 0x04, 0x25, 0xe0, 0x80, 0x00, 0x00, 0x3b, 0x7d, 0x08, 0x00, // movl $0x00080000 + page_fault, 0x80e0
    0xc7, 0x04, 0x25, 0xe4, 0x80, 0x00, 0x00, 0x00, 0x8e, 0x00, 0x00, // movl $0x00008e00, 0x80e4
    0xc7, 0x04, 0x25, 0xf0, 0x80, 0x00, 0x00, 0x39, 0x7d, 0x08, 0x00, // movl $0x00080000 + spurious, 0x80f0
    0xc7, 0x04, 0x25, 0xf4, 0x80, 0x00, 0x00, 0x00, 0x8e, 0x00, 0x00, // movl $0x00008e00, 0x80f4
    //
    // Each handler sets its bit of BL: an exception, a fault on 4 MiB, which is not mapped, and a timer interrupt while
    // halted, which is the only one let through.
    0x31, 0xdb,                                        // xorl %ebx, %ebx
    0xcc,                                              // int3
    0xbe, 0x00, 0x00, 0x40, 0x00,                      // movl $0x400000, %esi
    0x8a, 0x06,                                        // movb (%rsi), %al
    0xb0, 0xfe,                                        // movb $0xfe, %al
    0xe6, 0x21,                                        // outb %al, $0x21
    0xfb,                                              // sti
    // wait:
    0xf4,                                              // hlt
    0xf6, 0xc3, 0x04,                                  // testb $4, %bl
    0x74, 0xfa,                                        // jz wait
    0xfa,                                              // cli
    0x80, 0xfb, 0x07,                                  // cmpb $7, %bl
    0x75, 0x42,                                        // jne fail
    //
    // STAR, LSTAR, KERNEL_GS_BASE; then to user mode, which comes back by a system call.
    0xb9, 0x81, 0x00, 0x00, 0xc0,                      // movl $0xc0000081, %ecx
    0x31, 0xc0,                                        // xorl %eax, %eax
    0xba, 0x08, 0x00, 0x10, 0x00,                      // movl $0x00100008, %edx
    0x0f, 0x30,                                        // wrmsr
    0xff, 0xc1,                                        // incl %ecx
    0xb8, 0x22, 0x7d, 0x00, 0x00,                      // movl $system_call, %eax
    0x31, 0xd2,                                        // xorl %edx, %edx
    0x0f, 0x30,                                        // wrmsr
    0xb9, 0x02, 0x01, 0x00, 0xc0,                      // movl $0xc0000102, %ecx
    0x0f, 0x30,                                        // wrmsr
    0x0f, 0x01, 0xf8,                                  // swapgs
    0xb9, 0x1e, 0x7d, 0x00, 0x00,                      // movl $user, %ecx
    0x41, 0xbb, 0x02, 0x00, 0x00, 0x00,                // movl $0x2, %r11d
    0x48, 0x0f, 0x07,                                  // sysretq
    // user:
    0x0f, 0xa2,                                        // cpuid
    0x0f, 0x05,                                        // syscall
    // system_call:
    0x0f, 0x01, 0xf8,                                  // swapgs
    0x66, 0x0f, 0xef, 0xc0,                            // pxor %xmm0, %xmm0
    //
    // Done: the exit device makes 0x10 the exit code 0x21, and 0x7f the code 0xff. QEMU may take its time to exit, and
    // what is written last counts (10.0), so nothing may follow.
    0xb0, 0x10,                                        // movb $0x10, %al
    0xe6, 0xf4,                                        // outb %al, $0xf4
    0xeb, 0x04,                                        // jmp stop
    // fail:
    0xb0, 0x7f,                                        // movb $0x7f, %al
    0xe6, 0xf4,                                        // outb %al, $0xf4
    // stop:
    0xf4,                                              // hlt
    0xeb, 0xfd,                                        // jmp stop
    // breakpoint:
    0x80, 0xcb, 0x01,                                  // orb $1, %bl
    // spurious:
    0x48, 0xcf,                                        // iretq
    //
    // Drops the error code, and steps over the two bytes of the load.
    // page_fault:
    0x80, 0xcb, 0x02,                                  // orb $2, %bl
    0x48, 0x83, 0xc4, 0x08,                            // addq $8, %rsp
    0x48, 0x83, 0x04, 0x24, 0x02,                      // addq $2, (%rsp)
    0x48, 0xcf,                                        // iretq
    //
    // Acknowledges the interrupt.
    // timer:
    0x80, 0xcb, 0x04,                                  // orb $4, %bl
    0xb0, 0x20,                                        // movb $0x20, %al
    0xe6, 0x20,                                        // outb %al, $0x20
    0x48, 0xcf,                                        // iretq
    //
    // Segments: none, 0x08 kernel code, 0x10 kernel data, 0x18 user data, 0x20 user code. Then what lgdt and lidt read.
    // gdt:
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,    // .quad 0
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00,    // .quad 0x00209a0000000000
    0x00, 0x00, 0x00, 0x00, 0x00, 0x92, 0x00, 0x00,    // .quad 0x0000920000000000
    0x00, 0x00, 0x00, 0x00, 0x00, 0xf2, 0x00, 0x00,    // .quad 0x0000f20000000000
    0x00, 0x00, 0x00, 0x00, 0x00, 0xfa, 0x20, 0x00,    // .quad 0x0020fa0000000000
    // gdtr:
    0x27, 0x00,                                        // .word 39
    0x52, 0x7d, 0x00, 0x00,                            // .long gdt
    // idtr:
    0xff, 0x0f,                                        // .word 0xfff
    0x00, 0x80, 0x00, 0x00,                            // .long 0x8000
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sector_is_bootable_and_its_tables_are_where_the_code_says() {
        let sector = boot_sector();
        assert_eq!(sector.len(), 512);
        assert_eq!(sector[510..], [0x55, 0xaa]);
        // The last thing in the program are the limit and the address of the interrupt table, just behind those of the
        // segment table, which in turn lies before them.
        let gdtr = CODE.len() - 12;
        let gdt = u32::from_le_bytes([CODE[gdtr + 2], CODE[gdtr + 3], CODE[gdtr + 4], CODE[gdtr + 5]]);
        assert_eq!(gdt, 0x7c00 + u32::try_from(gdtr - 40).expect("it is small"));
        assert!(CODE.len() <= 510 - 64, "room for a partition table");
    }
}
