# The accelerator probe's guest: a boot sector that does what a kernel's first moments do, and says so at port 0xf4:
# 64-bit long mode, then code in the upper half of addresses with its own descriptors, and an exception and its return.
# The bytes in probe.py are made with:
#   as --64 probe.s -o probe.o && ld --oformat binary -Ttext 0x7c00 -o probe.bin probe.o
.set UPPER, 0xffffffff80000000
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
    movl $0x1000, %edi          # page tables at 0x1000: 2 MiB of memory, at 0 and at UPPER; the IDT at 0x5000
    movl %edi, %cr3
    xorl %eax, %eax
    movw $0x1400, %cx
    cld
    rep stosl
    movl $0x2003, 0x1000
    movl $0x2003, 0x1ff8
    movl $0x3003, 0x2000
    movl $0x3003, 0x2ff0
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
    movq $(UPPER + upper), %rax
    jmp *%rax
upper:
    movq $(UPPER + 0x7c00), %rsp
    lgdt UPPER + gdt_upper
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    pushq $8                    # reload CS, as kernels do
    pushq $(UPPER + reloaded)
    lretq
reloaded:
    movl $0xc0000101, %ecx      # GS.base
    movl $UPPER, %eax
    movl $-1, %edx
    wrmsr
    movw %gs:0x7dfe, %bx        # the boot sector's last word
    movq $(UPPER + breakpoint), %rax    # the gate of vector 3
    movw %ax, UPPER + 0x5030
    shrl $16, %eax
    movw $8, UPPER + 0x5032
    movw $0x8e00, UPPER + 0x5034
    movw %ax, UPPER + 0x5036
    movl $-1, UPPER + 0x5038
    lidt UPPER + idt_pointer
    movq %cr4, %rax             # global pages on, and off: how kernels flush
    orq $0x80, %rax
    movq %rax, %cr4
    movq %cr3, %rcx
    movq %rcx, %cr3
    xorl %ebp, %ebp
    int3
    cmpl $1, %ebp
    jne fail
    cmpw $0xaa55, %bx
    jne fail
    movabsq $0x0123456789abcdef, %rax   # proves 64-bit operands
    shrq $32, %rax
    cmpl $0x01234567, %eax
    jne fail
    movb $0x2a, %al
    outb %al, $0xf4             # isa-debug-exit: QEMU ends with (0x2a << 1) | 1 = 85
fail:
    hlt
    jmp fail
breakpoint:
    incl %ebp
    iretq
.balign 8
gdt:
    .quad 0
    .quad 0x00af9a000000ffff
    .quad 0x00cf92000000ffff
gdt_pointer:
    .word 23
    .long gdt
gdt_upper:
    .word 23
    .quad UPPER + gdt
idt_pointer:
    .word 0x3f
    .quad UPPER + 0x5000
.org 510
    .word 0xaa55
