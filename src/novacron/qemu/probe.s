# The accelerator probe's guest: a boot sector that goes to 64-bit long mode and says so at port 0xf4.
# The bytes in probe.py are made with:
#   as --64 probe.s -o probe.o && ld --oformat binary -Ttext 0x7c00 -o probe.bin probe.o
.code16
.globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    inb $0x92, %al              # A20
    orb $2, %al
    outb %al, $0x92
    movl $0x1000, %edi          # page tables at 0x1000: one 2 MiB identity mapping
    movl %edi, %cr3
    xorl %eax, %eax
    movw $0xc00, %cx
    cld
    rep stosl
    movl $0x2003, 0x1000
    movl $0x3003, 0x2000
    movl $0x83, 0x3000
    movl %cr4, %eax             # PAE
    orl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx      # EFER.LME
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax             # protection and paging
    orl $0x80000001, %eax
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long_mode
.code64
long_mode:
    movabsq $0x0123456789abcdef, %rax   # proves 64-bit operands
    shrq $32, %rax
    cmpl $0x01234567, %eax
    jne fail
    movb $0x2a, %al
    outb %al, $0xf4             # isa-debug-exit: QEMU ends with (0x2a << 1) | 1 = 85
fail:
    hlt
    jmp fail
.balign 8
gdt:
    .quad 0
    .quad 0x00af9a000000ffff
gdt_pointer:
    .word 15
    .long gdt
.org 510
    .word 0xaa55
