/* One call: a prompt's heads, or vectors that are there already, and the components that are multiplied with them. */
#include <stdint.h>

typedef struct {
  const float *z;          /* [pos, head, d_head], or the vectors [pos, vector, d_model] */
  const float *W_O;        /* [head, d_model / strip, d_head, strip] with strip = 2 lanes; NULL: z holds vectors */
  const float *of;         /* [component, pos, d_model] */
  float *num;              /* [component, head, pos] */
  float *norm2;            /* [head, pos] */
  int64_t z_pos, z_head;   /* steps from one position, head, ... to the next, in floats; what is last lies side by side */
  int64_t of_component, of_pos, num_component, num_head, norm2_head;
  int64_t heads, d_head, d_model, components;
  int64_t together;        /* heads formed before they are multiplied: as many as fit in the cache */
  int64_t lanes;           /* floats in a register: 4, 8 or 16 */
} Call;

enum { POSITIONS = 12 };   /* a tile's: a multiple of ROWS on every processor */
