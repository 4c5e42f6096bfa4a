/* The loops for one kind of processor; included once for each, with these defined:
   NAME(x)  the function's name there      TARGET   what the compiler may use
   LANES    floats in a register           ROWS     positions whose heads are in registers at once, two for each */
typedef float NAME(Lanes) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define Lanes NAME(Lanes)
#define STRIP (2 * LANES)
#define BLOCK 3

/* heads[r][d] = sum_k z[k][r] W[k][d] for one strip of d_model; the ROWS x STRIP sums stay in registers. */
TARGET static void NAME(form)(const float *z, const float *W, float *heads, int64_t d_head, int64_t row) {
  Lanes sum[ROWS][2];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = (Lanes){0};
  for (int64_t k = 0; k < d_head; k++, W += STRIP, z += ROWS) {
    const Lanes left = ((const Lanes *)W)[0], right = ((const Lanes *)W)[1];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      sum[r][0] += z[r] * left;
      sum[r][1] += z[r] * right;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) {
    ((Lanes *)(heads + r * row))[0] = sum[r][0];
    ((Lanes *)(heads + r * row))[1] = sum[r][1];
  }
}

/* Add the lanes by halves, then what d_model leaves over. Every inner product ends here, in the same order. */
TARGET static inline float NAME(finish)(Lanes sum, const float *a, const float *b, int64_t d, int64_t d_model) {
  float lane[LANES];
  *(Lanes *)lane = sum;
#pragma GCC unroll 4
  for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int l = 0; l < half; l++) lane[l] += lane[l + half];
  for (; d < d_model; d++) lane[0] += a[d] * b[d];
  return lane[0];
}

/* out[i][j] = <a[i], b[j]> for as many rows of either: a constant, so that all sums stay in registers. */
TARGET static inline __attribute__((always_inline)) void NAME(block)(const int rows, const float *a, int64_t a_row,
    const float *b, int64_t b_row, int64_t d_model, float *out, int64_t out_a, int64_t out_b) {
  Lanes sum[BLOCK][BLOCK];
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < rows; j++) sum[i][j] = (Lanes){0};
  int64_t d = 0;
  for (; d + LANES <= d_model; d += LANES) {
    Lanes right[BLOCK];
#pragma GCC unroll 4
    for (int j = 0; j < rows; j++) right[j] = *(const Lanes *)(b + j * b_row + d);
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
      const Lanes left = *(const Lanes *)(a + i * a_row + d);
#pragma GCC unroll 4
      for (int j = 0; j < rows; j++) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < rows; j++)
      out[i * out_a + j * out_b] = NAME(finish)(sum[i][j], a + i * a_row, b + j * b_row, d, d_model);
}

/* out[i][j] = <a[i], b[j]>. The last block begins early rather than being smaller, and finds the same bits again. */
TARGET static void NAME(multiply)(const float *a, int64_t a_row, int64_t a_size, const float *b, int64_t b_row,
    int64_t b_size, int64_t d_model, float *out, int64_t out_a, int64_t out_b) {
  const int64_t step = a_size < BLOCK || b_size < BLOCK ? 1 : BLOCK;
  for (int64_t i = 0; i < a_size; i += step)
    for (int64_t j = 0; j < b_size; j += step) {
      const int64_t first = i + step <= a_size ? i : a_size - step, second = j + step <= b_size ? j : b_size - step;
      const float *from = a + first * a_row, *with = b + second * b_row;
      float *to = out + first * out_a + second * out_b;
      if (step == 1)
        NAME(block)(1, from, a_row, with, b_row, d_model, to, out_a, out_b);
      else
        NAME(block)(BLOCK, from, a_row, with, b_row, d_model, to, out_a, out_b);
    }
}

TARGET static float NAME(square)(const float *a, int64_t d_model) {
  Lanes sum[4] = {{0}, {0}, {0}, {0}}; /* four, so that no addition waits for the one before */
  int64_t d = 0;
  for (; d + 4 * LANES <= d_model; d += 4 * LANES)
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) sum[v] += ((const Lanes *)(a + d))[v] * ((const Lanes *)(a + d))[v];
  return NAME(finish)((sum[0] + sum[1]) + (sum[2] + sum[3]), a, a, d, d_model);
}

/* Pack z [pos, d_head] of one head as form() reads it, [pos / ROWS, d_head, ROWS], and form its output in `heads`. */
TARGET static void NAME(form_head)(const Call *c, const float *z, int64_t positions, int64_t h, float *packed,
    float *heads, int64_t head_pos) {
  const int64_t groups = (positions + ROWS - 1) / ROWS, strips = (c->d_model + STRIP - 1) / STRIP;
  for (int64_t t = 0; t < groups * ROWS; t++)
    for (int64_t k = 0; k < c->d_head; k++)
      packed[(t / ROWS * c->d_head + k) * ROWS + t % ROWS] = t < positions ? z[t * c->z_pos + k] : 0;
  for (int64_t strip = 0; strip < strips; strip++)
    for (int64_t g = 0; g < groups; g++)
      NAME(form)(packed + g * ROWS * c->d_head, c->W_O + (h * strips + strip) * STRIP * c->d_head,
                 heads + g * ROWS * head_pos + strip * STRIP, c->d_head, head_pos);
}

/* Positions [begin, end), a tile at a time: some heads are formed, then multiplied with every component. */
TARGET static void NAME(run)(const Call *c, int64_t begin, int64_t end, float *scratch) {
  const int64_t width = c->W_O ? (c->d_model + STRIP - 1) / STRIP * STRIP : c->z_head;
  float *packed = scratch, *formed = scratch + POSITIONS * c->d_head;
  for (int64_t start = begin; start < end; start += POSITIONS)
    for (int64_t h = 0; h < c->heads; h += c->together) {
      const int64_t positions = end - start < POSITIONS ? end - start : POSITIONS;
      const int64_t count = c->heads - h < c->together ? c->heads - h : c->together;
      const float *z = c->z + start * c->z_pos + h * c->z_head, *heads = c->W_O ? formed : z;
      const int64_t head_pos = c->W_O ? count * width : c->z_pos;
      for (int64_t i = 0; c->W_O && i < count; i++)
        NAME(form_head)(c, z + i * c->z_head, positions, h + i, packed, formed + i * width, head_pos);
      for (int64_t t = 0; t < positions; t++) {
        const float *head = heads + t * head_pos;
        NAME(multiply)(c->of + (start + t) * c->of_pos, c->of_component, c->components, head, width, count, c->d_model,
                       c->num + h * c->num_head + start + t, c->num_component, c->num_head);
        for (int64_t i = 0; i < count; i++)
          c->norm2[(h + i) * c->norm2_head + start + t] = NAME(square)(head + i * width, c->d_model);
      }
    }
}

#undef Lanes
#undef STRIP
#undef BLOCK
#undef NAME
#undef LANES
#undef ROWS
#undef TARGET
