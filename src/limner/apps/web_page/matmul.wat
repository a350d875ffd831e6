;; The one program of the page that is not JavaScript: out[M, N] = a[M, K] * w[K, N].
;; All are float32, row by row; a, w, and out are addresses in bytes; M is a multiple of 4, N of 8.
;; Four rows and eight columns are in registers at a time, so that a number that was loaded is used
;; four or eight times: the processor multiplies instead of waiting for memory.
;; `limner export` translates it (assemble.py), and `wat2wasm` makes the same bytes of it.
(module
  (import "page" "memory" (memory 1))
  (func (export "matmul")
    (param $a i32) (param $w i32) (param $out i32) (param $M i32) (param $K i32) (param $N i32)
    (local $i i32) (local $j i32) (local $k i32)
    (local $a_row i32) (local $w_row i32) (local $at_a i32) (local $at_w i32) (local $at_out i32)
    (local $l0 v128) (local $l1 v128) (local $l2 v128) (local $l3 v128)  ;; columns 0 to 3 of a row
    (local $r0 v128) (local $r1 v128) (local $r2 v128) (local $r3 v128)  ;; columns 4 to 7
    (local $wl v128) (local $wr v128) (local $x v128)
    (local.set $a_row (i32.shl (local.get $K) (i32.const 2)))
    (local.set $w_row (i32.shl (local.get $N) (i32.const 2)))
    (loop $columns
      (local.set $i (i32.const 0))
      (loop $rows
        (local.set $l0 (v128.const i32x4 0 0 0 0)) (local.set $r0 (v128.const i32x4 0 0 0 0))
        (local.set $l1 (v128.const i32x4 0 0 0 0)) (local.set $r1 (v128.const i32x4 0 0 0 0))
        (local.set $l2 (v128.const i32x4 0 0 0 0)) (local.set $r2 (v128.const i32x4 0 0 0 0))
        (local.set $l3 (v128.const i32x4 0 0 0 0)) (local.set $r3 (v128.const i32x4 0 0 0 0))
        (local.set $at_a (i32.add (local.get $a) (i32.mul (local.get $i) (local.get $a_row))))
        (local.set $at_w (i32.add (local.get $w) (i32.shl (local.get $j) (i32.const 2))))
        (local.set $k (local.get $K))
        (loop $sum
          (local.set $wl (v128.load (local.get $at_w)))
          (local.set $wr (v128.load offset=16 (local.get $at_w)))
          (local.set $x (v128.load32_splat (local.get $at_a)))
          (local.set $l0 (f32x4.add (local.get $l0) (f32x4.mul (local.get $x) (local.get $wl))))
          (local.set $r0 (f32x4.add (local.get $r0) (f32x4.mul (local.get $x) (local.get $wr))))
          (local.set $x (v128.load32_splat (i32.add (local.get $at_a) (local.get $a_row))))
          (local.set $l1 (f32x4.add (local.get $l1) (f32x4.mul (local.get $x) (local.get $wl))))
          (local.set $r1 (f32x4.add (local.get $r1) (f32x4.mul (local.get $x) (local.get $wr))))
          (local.set $x (v128.load32_splat
            (i32.add (local.get $at_a) (i32.shl (local.get $a_row) (i32.const 1)))))
          (local.set $l2 (f32x4.add (local.get $l2) (f32x4.mul (local.get $x) (local.get $wl))))
          (local.set $r2 (f32x4.add (local.get $r2) (f32x4.mul (local.get $x) (local.get $wr))))
          (local.set $x (v128.load32_splat
            (i32.add (local.get $at_a) (i32.mul (local.get $a_row) (i32.const 3)))))
          (local.set $l3 (f32x4.add (local.get $l3) (f32x4.mul (local.get $x) (local.get $wl))))
          (local.set $r3 (f32x4.add (local.get $r3) (f32x4.mul (local.get $x) (local.get $wr))))
          (local.set $at_a (i32.add (local.get $at_a) (i32.const 4)))
          (local.set $at_w (i32.add (local.get $at_w) (local.get $w_row)))
          (local.set $k (i32.sub (local.get $k) (i32.const 1)))
          (br_if $sum (local.get $k)))
        (local.set $at_out (i32.add (local.get $out)
          (i32.add (i32.mul (local.get $i) (local.get $w_row)) (i32.shl (local.get $j) (i32.const 2)))))
        (v128.store (local.get $at_out) (local.get $l0))
        (v128.store offset=16 (local.get $at_out) (local.get $r0))
        (local.set $at_out (i32.add (local.get $at_out) (local.get $w_row)))
        (v128.store (local.get $at_out) (local.get $l1))
        (v128.store offset=16 (local.get $at_out) (local.get $r1))
        (local.set $at_out (i32.add (local.get $at_out) (local.get $w_row)))
        (v128.store (local.get $at_out) (local.get $l2))
        (v128.store offset=16 (local.get $at_out) (local.get $r2))
        (local.set $at_out (i32.add (local.get $at_out) (local.get $w_row)))
        (v128.store (local.get $at_out) (local.get $l3))
        (v128.store offset=16 (local.get $at_out) (local.get $r3))
        (local.set $i (i32.add (local.get $i) (i32.const 4)))
        (br_if $rows (i32.lt_u (local.get $i) (local.get $M))))
      (local.set $j (i32.add (local.get $j) (i32.const 8)))
      (br_if $columns (i32.lt_u (local.get $j) (local.get $N))))))
