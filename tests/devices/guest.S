# A guest: the firmware of a PC, which runs from the reset vector, in real mode, and never leaves its ROM.
#
# It fills PAGE with Z, sends u, and counts at COUNTER for ever. It obeys bytes on the serial port:
#   r   sends the first byte of PAGE
#   b   gives PAGE to the balloon, and sends b when the balloon has taken it
#   v   gives PAGE to a network card, for what it receives, and sends v
# Both are virtio devices in PCI slot 5, with the legacy interface, whose queue 0 has 128 and 256 descriptors.

        .set COUNTER, 0x10000
        .set PAGE, 0x20000
        .set RING, 0x30000                      # queue 0: descriptors, available, used
        .set USED, 0x1000                       # with 128 descriptors
        .set BALLOONED, 0x3000                  # what the balloon gets: page numbers
        .set SERIAL, 0x3f8
        .set DEVICE, 0xc000                     # its ports, where this program puts them
        .set DESCRIPTOR_WRITE, 2

        .code16
        .section .text
        .global _start
_start:
        mov     $COUNTER >> 4, %ax
        mov     %ax, %ds
        mov     $RING >> 4, %ax
        mov     %ax, %fs
        mov     $PAGE >> 4, %ax
        mov     %ax, %es
        mov     $'Z', %al
        xor     %di, %di
        mov     $4096, %cx
        rep stosb
        mov     $'u', %al
        call    send

count:  incl    0
        mov     $SERIAL + 5, %dx
        in      %dx, %al
        test    $1, %al
        jz      count
        mov     $SERIAL, %dx
        in      %dx, %al
        cmp     $'r', %al
        je      read
        cmp     $'b', %al
        je      balloon
        cmp     $'v', %al
        je      network
        jmp     count

read:   mov     %es:0, %al
        call    send
        jmp     count

balloon:
        movl    $PAGE >> 12, %fs:BALLOONED
        movl    $RING + BALLOONED, %fs:0
        movl    $4, %fs:8
        movw    $0, %fs:12
        movw    $1, %fs:128 * 16 + 2            # one is available
        call    submit
1:      cmpw    $0, %fs:USED + 2
        je      1b
        mov     $'b', %al
        call    send
        jmp     count

network:
        movl    $PAGE, %fs:0
        movl    $4096, %fs:8
        movw    $DESCRIPTOR_WRITE, %fs:12
        movw    $1, %fs:256 * 16 + 2
        call    submit
        mov     $'v', %al
        call    send
        jmp     count

send:   mov     $SERIAL, %dx
        out     %al, %dx
        ret

submit:                                         # starts the device, and notifies it
        mov     $0x80002810, %eax               # slot 5, BAR 0
        mov     $DEVICE, %ebx
        call    configure
        mov     $0x80002804, %eax               # its command: answer ports, be bus master
        mov     $5, %ebx
        call    configure
        mov     $DEVICE + 18, %dx               # status: acknowledged, has a driver
        mov     $3, %al
        out     %al, %dx
        mov     $DEVICE + 14, %dx               # queue 0 lies at RING
        xor     %ax, %ax
        out     %ax, %dx
        mov     $DEVICE + 8, %dx
        mov     $RING >> 12, %eax
        out     %eax, %dx
        mov     $DEVICE + 18, %dx               # status: the driver is ready
        mov     $7, %al
        out     %al, %dx
        mov     $DEVICE + 16, %dx               # notify queue 0
        xor     %ax, %ax
        out     %ax, %dx
        ret

configure:                                      # register %eax of PCI gets %ebx
        mov     $0xcf8, %dx
        out     %eax, %dx
        mov     $0xcfc, %dx
        mov     %ebx, %eax
        out     %eax, %dx
        ret

        .org    0xfff0                          # the reset vector
        jmp     _start
        .org    0x10000
